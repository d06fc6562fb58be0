"""What the commands share: reading the data, running a cross-validation, writing tables and pictures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from asegnet_fast.training.config import Settings

if TYPE_CHECKING:
    from asegnet_fast.training.config import Row
    from asegnet_fast.training.progress import Reporter

PROGRAM = "asegnet-fast"


def run_crossval(settings: Settings, resume: bool) -> None:
    """Read the data, cross-validate, and write tables and pictures.

    Raises:
        typer.Exit: 130 when interrupted, 1 when a fold was given up.
    """
    from asegnet_fast.environment import check_backend, choose_device, keep_large_allocations, precision_note
    from asegnet_fast.training.crossval import check_network, check_run_folder, cross_validate
    from asegnet_fast.training.progress import Reporter

    keep_large_allocations()
    # What can be refused is refused before minutes of reading.
    check_run_folder(settings, resume)
    device = choose_device(settings.device)
    check_backend(settings.backend, device)
    check_network(settings)
    with Reporter() as reporter:
        try:
            slices = load(settings, reporter)
            reporter.say(f"device {device}, {settings.precision}, backend {settings.backend}")
            note = precision_note(settings.precision, device)
            if note:
                reporter.say(f"note: {note}")
            summary, given_up = cross_validate(settings, slices, reporter, resume, _draw_progress)
        except KeyboardInterrupt:
            reporter.say(f"interrupted; the same command with --resume continues {settings.out}")
            raise typer.Exit(130) from None
        write_tables(summary, Path(settings.out), reporter)
        write_figures(summary, Path(settings.out), slices, reporter)
        for row in summary["rows"]:
            share = row["outside_convolution"]
            outside = (
                f", {100 * share['share']:.0f} % of {share['clock']} outside convolutions" if share else ""
            )
            reporter.say(f"{row['folder']}: {row['seconds']:.1f} s{outside}")
    if given_up:
        for line in given_up:
            print(f"{PROGRAM}: {line}", file=sys.stderr)
        raise typer.Exit(1)


def load(settings: Settings, reporter: Reporter) -> Any:
    """The slices that the settings name; what the user must know of them is said."""
    from asegnet_fast.training.crossval import load_data

    slices = load_data(settings, reporter.loading)
    for note in slices.notes:
        reporter.say(f"note: {note}")
    return slices


def _draw_progress(folder: Path, row: Row) -> None:
    from asegnet_fast.report.figures import fold_progress
    from asegnet_fast.report.table import row_label

    if (folder / "progress.png").exists():
        return  # drawn before the run was resumed
    fold_progress(folder, f"{row_label(row.to_json())}, fold {folder.name.removeprefix('fold')}")


def write_tables(summary: dict[str, Any], run: Path, reporter: Reporter) -> None:
    """Write the tables of a run's summary into its folder, and print them."""
    from asegnet_fast.report import table

    table.write_tables(summary, run)
    reporter.console.print(table.terminal_table(summary))
    reporter.say("Percent, pooled over all test slices; in brackets the paper's Table 1.")
    for line in table.standing(summary):
        reporter.say(line)
    reporter.say(f"wrote {run / 'summary.json'}, {run / 'table1.md'}, {run / 'table1.csv'}")


def write_figures(summary: dict[str, Any], run: Path, slices: Any, reporter: Reporter) -> None:
    """Draw the pictures of a run into its folder."""
    from asegnet_fast.report import figures

    figures.write_figures(run, summary, slices)
    reporter.say(f"wrote {run / 'figures'}{os.sep}")
