"""What the commands share: reading the data, running a cross-validation, writing tables and pictures."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from asegnet_fast.errors import InputError
from asegnet_fast.training.config import Settings

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet
    from asegnet_fast.training.config import Row
    from asegnet_fast.training.jobs import Sharing
    from asegnet_fast.training.progress import Reporter

PROGRAM = "asegnet-fast"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does; batch systems send it some time before they kill."""


@contextlib.contextmanager
def resumable(out: str, reporter: Reporter) -> Iterator[None]:
    """Work on a run's folder that may be stopped at any moment and resumed: by Ctrl-C, SIGTERM or a full disk.

    A second Ctrl-C or SIGTERM ends the process at once; the files bear that, too.

    Args:
        out: the run's folder.
        reporter: says how the run is continued.

    Raises:
        typer.Exit: 130 after Ctrl-C, 143 after SIGTERM.
        TrainingError: a file cannot be written; one line names it.
    """
    from asegnet_fast.training import distributed
    from asegnet_fast.training.loop import TrainingError

    continues = f"the same command with --resume continues {out}"

    def stop(number: int, _: object) -> None:
        for name in handlers:
            signal.signal(name, signal.SIG_DFL)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    handlers: dict[int, Any] = {}
    # Processes that train together have agreed how to stop.
    if threading.current_thread() is threading.main_thread() and not distributed.launched():
        handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
        for name in handlers:
            signal.signal(name, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        terminated = isinstance(stopped, Terminated)
        reporter.say(f"{'terminated' if terminated else 'interrupted'}; {continues}")
        raise typer.Exit(143 if terminated else 130) from None
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise TrainingError(f"{reason}; nothing written before is lost, and {continues}") from None
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def run_crossval(settings: Settings, resume: bool, workers: int = 1, sharing: Sharing | None = None) -> None:
    """Read the data, cross-validate, and write tables and pictures.

    Args:
        settings: of the run.
        resume: continue a run, or join those who are at it.
        workers: processes of this machine that share the folds.
        sharing: how to share them with other machines.

    Raises:
        typer.Exit: 130 when interrupted, 1 when a fold was given up.
    """
    from asegnet_fast.training import distributed
    from asegnet_fast.training.crossval import cross_validate
    from asegnet_fast.training.run_folder import check_run_folder

    if workers > 1 and distributed.launched():
        raise InputError("--workers: expected 1 under torchrun, whose processes train together, got more")
    with distributed.processes(), reporter_of_process() as reporter, resumable(settings.out, reporter):
        distributed.on_first(check_run_folder, settings, resume)
        slices = read_data(settings, reporter)
        summary, given_up = cross_validate(settings, slices, reporter, resume, draw_fold, sharing, workers)
        if summary is None:
            reporter.say("nothing left to begin; the last process to finish a fold writes the table")
        elif distributed.first():
            write_results(summary, Path(settings.out), slices, reporter, Path(settings.data))
    if given_up:
        if distributed.first():
            for line in given_up:
                print(f"{PROGRAM}: {line}", file=sys.stderr)
        raise typer.Exit(1)


def read_data(settings: Settings, reporter: Reporter) -> SliceSet:
    """Refuse what can be refused before minutes of reading, then read the slices, and say what they are trained on."""
    from asegnet_fast.environment import check_backend, choose_device, keep_large_allocations, precision_note
    from asegnet_fast.training import distributed
    from asegnet_fast.training.run_folder import check_network

    keep_large_allocations()
    device = distributed.everywhere(choose_device, settings.device)
    distributed.everywhere(check_backend, settings.backend, device)
    check_network(settings)
    slices = distributed.everywhere(load, settings, reporter)
    by = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    reporter.say(f"device {device}{by}, {settings.precision}, backend {settings.backend}")
    note = precision_note(settings.precision, device)
    if note:
        reporter.say(f"note: {note}")
    return slices


def reporter_of_process() -> Reporter:
    """A reporter; of several processes that train together only the first one's is heard."""
    from rich.console import Console

    from asegnet_fast.training import distributed
    from asegnet_fast.training.progress import Reporter

    return Reporter() if distributed.first() else Reporter(Console(quiet=True))


def write_results(summary: dict[str, Any], run: Path, slices: Any, reporter: Reporter, root: Path) -> None:
    """Write a run's tables, pictures and page, and say how long each row took; `root` is the data's folder."""
    from asegnet_fast.training.crossval import run_times

    write_tables(summary, run, reporter)
    write_report(summary, run, reporter, slices, root)
    for row in run_times(run):
        share = row["outside_convolution"]
        outside = f", {100 * share['share']:.0f} % of {share['clock']} outside convolutions" if share else ""
        reporter.say(f"{row['folder']}: {row['seconds']:.1f} s{outside}")


def load(settings: Settings, reporter: Reporter) -> SliceSet:
    """The slices that the settings name; what the user must know of them is said."""
    from asegnet_fast.training.crossval import load_data

    slices = load_data(settings, reporter.loading)
    for note in slices.notes:
        reporter.say(f"note: {note}")
    return slices


def draw_fold(folder: Path, row: Row) -> None:
    """Draw progress.png of a finished fold of a cross-validation."""
    draw_progress(folder, row, int(folder.name.removeprefix("fold")))


def draw_progress(folder: Path, row: Row, fold: int | None) -> None:
    """Draw progress.png into a folder where a row was trained, unless it was drawn before a run was resumed."""
    from asegnet_fast.report.charts import fold_progress
    from asegnet_fast.report.table import row_label

    if not (folder / "progress.png").exists():
        fold_progress(folder, row_label(row.to_json()) + ("" if fold is None else f", fold {fold}"))


def write_tables(summary: dict[str, Any], run: Path, reporter: Reporter) -> None:
    """Write the tables of a run's summary into its folder, and print them."""
    from asegnet_fast.report import table

    table.write_tables(summary, run)
    reporter.console.print(table.terminal_table(summary))
    reporter.say("Percent, pooled over all test slices; in brackets the paper's Table 1.")
    for line in table.standing(summary):
        reporter.say(line)
    reporter.say(f"wrote {run / 'summary.json'}, {run / 'table1.md'}, {run / 'table1.csv'}")


def write_report(
    summary: dict[str, Any],
    run: Path,
    reporter: Reporter,
    slices: Any = None,
    root: Path | None = None,
    out: Path | None = None,
) -> bool:
    """Write the pictures and the page of a run; the arguments are those of `asegnet_fast.report.write_report`.

    Returns:
        Whether everything could be made; what could not is said on standard error, a line each.
    """
    from asegnet_fast.report import write_report as write

    problems = write(run, summary, slices, root, out)
    reporter.say(f"wrote {run / 'figures'}{os.sep}, {run / 'conclusions.csv'}, {out or run / 'report.html'}")
    for problem in problems:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
    return not problems
