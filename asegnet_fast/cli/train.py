"""`asegnet-fast train`: one model with one loss, on all slices or on all but one fold's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from asegnet_fast.cli._options import CONFIG, DATA, NETWORK, TRAINING, path_option, takes_settings
from asegnet_fast.cli._run import draw_progress, read_data, reporter_of_process, resumable
from asegnet_fast.errors import InputError
from asegnet_fast.training.config import MODELS, read_settings
from asegnet_fast.training.losses import SPELLING, Loss

MODEL = "a_segnet"


@takes_settings("data", "out", ..., *NETWORK, *DATA, *TRAINING)
def train(
    given: dict[str, Any],
    config: CONFIG = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", show_default=False)
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help=f"The network. [default: {MODEL}]", metavar="|".join(MODELS), show_default=False),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help=f"One of {SPELLING}. [default: ftl:0.3:0.7:4/3]", show_default=False),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            help="Leave the slices of this fold out, 0 to --folds less 1, and measure on them; default none.",
            metavar="K",
            show_default=False,
        ),
    ] = None,
    folds_file: Annotated[
        Path | None,
        path_option(
            "Take the folds from this file, as crossval writes it, instead of --split, --folds and --seed.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Train one model on all slices, or on all but one fold's.

    Leaves checkpoint_last.pt, history.csv, metrics.json and progress.png in --out, and checkpoint_best.pt with
    --inner-validation. Interrupted with Ctrl-C, it is continued with --resume. torchrun -m asegnet_fast train ...
    divides each batch over its processes.
    """
    from asegnet_fast.training import distributed
    from asegnet_fast.training.run_folder import check_run_folder
    from asegnet_fast.training.single import check_fold, settings_of_folds, train_model

    if model is not None and model not in MODELS:
        raise InputError(f"--model: expected one of {', '.join(MODELS)}, got {model!r}")
    if loss is not None:
        try:
            Loss.parse(loss)
        except InputError as error:
            raise InputError(f"--loss: {error}") from None
    settings = read_settings(config, given | {"models": model, "losses": loss})
    if len(settings.models) > 1:
        settings = dataclasses.replace(settings, models=(MODEL,))
    if len(settings.losses) > 1:
        raise InputError(f"--loss: expected one loss, got {', '.join(settings.losses)}")
    held_out = _fold(fold)
    if folds_file is not None:
        if twice := [name for name in ("split", "folds") if given[name] is not None]:
            raise InputError(f"--folds-file: expected no --{twice[0]} beside it, got both")
        settings = settings_of_folds(settings, folds_file)
    check_fold(settings, held_out, folds_file)

    out = Path(settings.out)
    with distributed.processes(), reporter_of_process() as reporter, resumable(settings.out, reporter):
        distributed.on_first(check_run_folder, settings, resume, None, "train", held_out)
        slices = read_data(settings, reporter)
        metrics = train_model(settings, slices, reporter, resume, held_out, folds_file)
        if distributed.first():
            draw_progress(out, settings.rows()[0], held_out)
            where = "all slices" if held_out is None else f"all but fold {held_out}"
            reporter.say(f"{metrics['epochs']} epochs on {metrics['training_slices']} slices ({where})")
            for name in ("dice", "sensitivity", "specificity") if held_out is not None else ():
                value = metrics[name]["pooled"]
                reporter.say(f"{name:<12} {'undefined' if value is None else f'{100 * value:.2f} %'}")
            reporter.say(f"wrote {out / 'checkpoint_last.pt'}")


def _fold(text: str | None) -> int | None:
    """The number of `--fold`; that there is such a fold is checked later."""
    if text is not None and not text.isdecimal():
        raise InputError(f"--fold: expected a whole number from 0, got {text!r}")
    return None if text is None else int(text)
