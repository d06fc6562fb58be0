"""The program `asegnet-fast`.

Exit status: 0 done; 2 wrong usage or input, with one line that names the option or file; 130 interrupted;
1 anything else, the program's own faults among it. matplotlib is imported where pictures are drawn; torch comes with
the package, because importing that registers the operations.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asegnet_fast.errors import InputError
from asegnet_fast.training.config import CHOICES, MODELS, Settings, convert, option, read_settings
from asegnet_fast.training.losses import SPELLING

if TYPE_CHECKING:
    from asegnet_fast.training.config import Row
    from asegnet_fast.training.progress import Reporter

PROGRAM = "asegnet-fast"
TRACEBACK = "ASEGNET_FAST_TRACEBACK"
# typer brings its own copy of click or the installed one, by version; its public exception leads to either's base.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Segmentation of CT slices with SegNet and A-SegNet: cross-validation, tables and pictures.",
)


def _option(name: str, help: str, *flags: str) -> Any:
    """A typer option for a field of Settings; its default and its choices are shown from there."""
    default = {field.name: field.default for field in dataclasses.fields(Settings)}[name]
    if default not in (None, dataclasses.MISSING) and not isinstance(default, bool):
        help += f" [default: {','.join(default) if isinstance(default, tuple) else default}]"
    # Numbers are taken as text and converted with the YAML file's, so that both are refused in the same words.
    kind = {field.name: field.type for field in dataclasses.fields(Settings)}[name]
    metavar = "|".join(CHOICES[name]) if name in CHOICES else {"int": "N", "float": "X"}.get(str(kind))
    return typer.Option(*(flags or (option(name),)), help=help, show_default=False, metavar=metavar)


@app.command()
def crossval(
    data: Annotated[str | None, _option("data", "Folder with the CT data in NIfTI.")] = None,
    out: Annotated[str | None, _option("out", "Folder of the run; made where it is absent.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with these options as keys; options win.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", show_default=False)
    ] = False,
    models: Annotated[str | None, _option("models", f"Some of {', '.join(MODELS)}.")] = None,
    losses: Annotated[str | None, _option("losses", f"Of {SPELLING}; numbers may be fractions.")] = None,
    table1: Annotated[
        bool,
        typer.Option("--table1", help="The paper's seven losses instead of --losses.", show_default=False),
    ] = False,
    preset: Annotated[str | None, _option("preset", "Widths and depth of both networks.")] = None,
    widths: Annotated[str | None, _option("widths", "Own channels of each section, e.g. 16,32,64.")] = None,
    convs: Annotated[
        str | None, _option("convs", "Own number of convolutions of each section, e.g. 2,2,3.")
    ] = None,
    decoder_relu: Annotated[
        bool | None,
        _option(
            "decoder_relu", "ReLU in the decoders (default) or none.", "--decoder-relu/--no-decoder-relu"
        ),
    ] = None,
    final_relu: Annotated[
        bool | None,
        _option(
            "final_relu",
            "Batch normalisation and ReLU on the logits, as in MATLAB's SegNet (default), or none.",
            "--final-relu/--no-final-relu",
        ),
    ] = None,
    join: Annotated[str | None, _option("join", "How A-SegNet joins the gate's output.")] = None,
    gate_mode: Annotated[str | None, _option("gate_mode", "Form of A-SegNet's attention gate.")] = None,
    split: Annotated[
        str | None, _option("split", "Keep patients whole (honest), or shuffle slices (the paper's, leaky).")
    ] = None,
    folds: Annotated[str | None, _option("folds", "Number of folds.")] = None,
    groups: Annotated[
        str | None, _option("groups", "CSV file,first,last,patient: which slices are one patient's.")
    ] = None,
    intensity: Annotated[str | None, _option("intensity", "How values become grey levels.")] = None,
    labels: Annotated[str | None, _option("labels", "One lesion class, or the labels kept apart.")] = None,
    select: Annotated[str | None, _option("select", "Slices with a label only, or all.")] = None,
    cache: Annotated[
        str | None, _option("cache", "Folder that keeps decoded slices for the next start.")
    ] = None,
    size: Annotated[str | None, _option("size", "Side of the slices in pixels.")] = None,
    epochs: Annotated[str | None, _option("epochs", "Passes over the training slices.")] = None,
    batch_size: Annotated[str | None, _option("batch_size", "Slices in a step.")] = None,
    lr: Annotated[str | None, _option("lr", "Learning rate at the start.")] = None,
    lr_halve_every: Annotated[str | None, _option("lr_halve_every", "Epochs until it is halved.")] = None,
    momentum: Annotated[str | None, _option("momentum", "Momentum of SGD.")] = None,
    weight_decay: Annotated[str | None, _option("weight_decay", "Weight decay of SGD.")] = None,
    inner_validation: Annotated[
        float | None,
        _option(
            "inner_validation",
            "Share of the training part set aside to choose checkpoint_best.pt; 0 for none.",
        ),
    ] = None,
    seed: Annotated[str | None, _option("seed", "Decides folds, weights and the order of slices.")] = None,
    device: Annotated[str | None, _option("device", "auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[
        str | None, _option("precision", "Number format of the network's arithmetic.")
    ] = None,
    backend: Annotated[
        str | None, _option("backend", "Which implementation serves the fused operations.")
    ] = None,
    checkpoint_seconds: Annotated[
        float | None, _option("checkpoint_seconds", "Least time between checkpoints; 0 for one each epoch.")
    ] = None,
    profile: Annotated[
        bool | None,
        _option("profile", "Measure the share of time outside convolutions.", "--profile/--no-profile"),
    ] = None,
) -> None:
    """Cross-validate models with losses, and write the table and the pictures.

    Defaults are the paper's recipe. Interrupted with Ctrl-C, a run is continued with --resume.
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "resume", "table1")}
    if table1:
        given["table1"] = True
    _cross_validate(read_settings(config, given), resume)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the synthetic data and the run.")] = Path("demo"),
    seed: Annotated[str, typer.Option(help="Decides the data, folds, weights and order.", metavar="N")] = "0",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the demo in --out.", show_default=False)
    ] = False,
) -> None:
    """Make a synthetic CT set and cross-validate SegNet and A-SegNet on it.

    Small on purpose: narrow networks, small slices and few epochs, so that two CPU cores need less than five
    minutes. Its numbers say that everything works, not how well the networks do.
    """
    from asegnet_fast.data import write_phantom
    from asegnet_fast.training.crossval import check_run_folder

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / "data").is_dir():
            raise InputError(f"--out: expected a new or empty folder, got {out} with other files")
        if not resume:
            raise InputError(f"--out: expected a new or empty folder, got {out} (continue it with --resume)")
    given = {"data": str(out / "data"), "out": str(out / "run"), "seed": seed}
    settings = Settings(**convert(given), **DEMO)
    check_run_folder(settings, resume)
    if not (out / "data").exists():
        unfinished = out / f".data.{os.getpid()}.tmp"
        write_phantom(unfinished, **DEMO_DATA, seed=settings.seed)
        os.replace(unfinished, out / "data")
    _cross_validate(settings, resume)


# Narrow networks on small slices: see the docstring of `demo`. Generalised Dice on plain logits, because it is the
# robust one in so few steps. Focal Tversky with the final ReLU reaches more where it trains (40 epochs: SegNet
# 63 %, A-SegNet 82 %), but SegNet stayed at background in 1 of 9 folds over three seeds, and in 2 of 3 folds at the
# learning rate 0.1.
DEMO: dict[str, Any] = {
    "losses": ("gdl",),
    "final_relu": False,
    "widths": (8, 16, 32, 32),
    "convs": (2, 2, 2, 2),
    "folds": 3,
    "size": 64,
    "epochs": 24,
    "batch_size": 8,
    "lr": 0.05,
    "lr_halve_every": 6,
}
DEMO_DATA = {"patients": 40, "slices_per_patient": 8, "size": 64}


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that crossval wrote, finished or not.")],
    data: Annotated[
        str | None, typer.Option(help="The run's data, where they have moved.", show_default=False)
    ] = None,
) -> None:
    """Rebuild the table and the pictures from a run's files."""
    from asegnet_fast.training.crossval import read_run, summarise_run
    from asegnet_fast.training.progress import Reporter

    settings, config = read_run(run)
    folder = data or settings.data
    with Reporter() as reporter:
        summary = summarise_run(run)
        slices = None
        if data is not None or Path(folder).is_dir():
            slices = _load(dataclasses.replace(settings, data=folder), reporter)
            if slices.fingerprint != config["data"]["fingerprint"]:
                raise InputError(f"{folder}: expected the data of the run {run}, got other slices")
        _write_tables(summary, run, reporter)
        if slices is None:  # the tables need no data
            raise InputError(f"--data: expected the run's data, got no folder {folder} (say where they are)")
        _write_figures(summary, run, slices, reporter)


@app.command()
def info() -> None:
    """Print versions, libraries found, and what serves each operation and why."""
    import torch

    import asegnet_fast as af
    from asegnet_fast import _extension
    from asegnet_fast.environment import choose_device, environment

    lines = environment(choose_device("auto"))
    lines |= {f"library {device}": reason or "loaded" for device, reason in _extension.absent.items()}
    lines |= {f"build {name}": value for name, value in _extension.build_info().items()}
    lines["torch's CUDA"] = torch.version.cuda or "none"
    for name, value in lines.items():
        print(f"{name:<26}{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    for op, devices in af.backends().items():
        for device, entry in devices.items():
            print(f"\n{op} on {device}: served by {entry['serves']}")
            for name in ("native", "triton"):
                print(f"  {name:<8}{entry[name]}")


def _cross_validate(settings: Settings, resume: bool) -> None:
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
            slices = _load(settings, reporter)
            reporter.say(f"device {device}, {settings.precision}, backend {settings.backend}")
            note = precision_note(settings.precision, device)
            if note:
                reporter.say(f"note: {note}")
            summary, given_up = cross_validate(settings, slices, reporter, resume, _draw_progress)
        except KeyboardInterrupt:
            reporter.say(f"interrupted; the same command with --resume continues {settings.out}")
            raise typer.Exit(130) from None
        _write_tables(summary, Path(settings.out), reporter)
        _write_figures(summary, Path(settings.out), slices, reporter)
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


def _load(settings: Settings, reporter: Reporter) -> Any:
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


def _write_tables(summary: dict[str, Any], run: Path, reporter: Reporter) -> None:
    from asegnet_fast.report.table import standing, terminal_table, write_tables

    write_tables(summary, run)
    reporter.console.print(terminal_table(summary))
    reporter.say("Percent, pooled over all test slices; in brackets the paper's Table 1.")
    for line in standing(summary):
        reporter.say(line)
    reporter.say(f"wrote {run / 'summary.json'}, {run / 'table1.md'}, {run / 'table1.csv'}")


def _write_figures(summary: dict[str, Any], run: Path, slices: Any, reporter: Reporter) -> None:
    from asegnet_fast.report.figures import write_figures

    write_figures(run, summary, slices)
    reporter.say(f"wrote {run / 'figures'}{os.sep}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: the command line after the program's name, or None for the process's own.

    Returns:
        The exit status.
    """
    try:
        status = app(
            args=None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False
        )
        return status if isinstance(status, int) else 0
    except UsageError as error:
        message, status = error.format_message(), 2
    except InputError as error:
        message, status = str(error), 2
    except OSError as error:
        message, status = f"{error.filename or 'input or output'}: {error.strerror or error}", 1
    except (typer.Abort, KeyboardInterrupt):
        message, status = "interrupted", 130
    except Exception as error:
        from asegnet_fast.training.loop import TrainingError

        if isinstance(error, TrainingError):
            message, status = str(error), 1
        elif os.environ.get(TRACEBACK):
            raise
        else:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            message = (
                f"a fault of the program: {type(error).__name__}: {error} ({where}; {TRACEBACK}=1 shows all)"
            )
            status = 1
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return status
