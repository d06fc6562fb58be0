"""`asegnet-fast tune`: a search for the loss's parameters and the learning rate."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asegnet_fast.cli._options import STALE, WAIT, WORKERS, read_sharing, read_workers, takes_settings
from asegnet_fast.cli._run import load, resumable
from asegnet_fast.errors import InputError
from asegnet_fast.training.config import Settings, read_settings
from asegnet_fast.training.search import Search
from asegnet_fast.training.space import DEFAULTS, LIMITS, Space

if TYPE_CHECKING:
    from asegnet_fast.training.jobs import Sharing

INNER_VALIDATION = 0.2


def _range(name: str, what: str) -> Any:
    least, most = LIMITS[name]
    return Annotated[
        str, typer.Option(help=f"{what}, {least:g} to {most:g}: LOW:HIGH or one number.", metavar="LOW:HIGH")
    ]


@takes_settings(
    "data",
    "out",
    ...,
    "models",
    "preset",
    "widths",
    "convs",
    "decoder_relu",
    "final_relu",
    "join",
    "gate_mode",
    "split",
    "folds",
    "groups",
    "intensity",
    "labels",
    "select",
    "cache",
    "size",
    "epochs",
    "batch_size",
    "lr_halve_every",
    "momentum",
    "weight_decay",
    "inner_validation",
    "early_stopping",
    "tested_epoch",
    "seed",
    "device",
    "precision",
    "backend",
    "deterministic",
    "checkpoint_seconds",
)
def tune(
    given: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file as for crossval; its losses and lr are not used. Options win."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the search in --out, or join other processes and machines that are at it.",
            show_default=False,
        ),
    ] = False,
    trials: Annotated[str, typer.Option(help="Trials in all, ended early or not.", metavar="N")] = "40",
    fold: Annotated[
        str, typer.Option(help="The fold in whose training part the search goes on.", metavar="K")
    ] = "0",
    alpha: _range("alpha", "Weight of false positives") = DEFAULTS["alpha"],
    beta: Annotated[
        str,
        typer.Option(
            help="Weight of false negatives: 1-alpha as in the paper, LOW:HIGH or one number.",
            metavar="1-alpha|LOW:HIGH",
        ),
    ] = DEFAULTS["beta"],
    gamma: _range("gamma", "Focal parameter, whose inverse is the exponent") = DEFAULTS["gamma"],
    lr: _range("lr", "Learning rate at the start, searched on a logarithmic scale") = DEFAULTS["lr"],
    prune_after: Annotated[
        str | None,
        typer.Option(
            help="Epochs after which a trial below the median of others is ended. "
            "[default: a fifth of --epochs]",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    workers: WORKERS = "1",
    wait: WAIT = True,
    stale_seconds: STALE = None,
) -> None:
    """Search the focal Tversky loss's alpha, beta and gamma and the learning rate.

    Each trial trains on a part of one fold's training slices and is measured on the rest of them, never on the
    fold's test slices. Here --models is one model, a_segnet by default, and --inner-validation is 0.2 by default.

    Leaves in --out: best.json with the crossval command to run next, trials.csv, pictures and the trials' files.
    Interrupted, it is continued with --resume. Needs Optuna (pip install 'asegnet-fast[tune]').
    """
    if given["models"] is None and config is None:
        given["models"] = "a_segnet"
    settings = read_settings(config, given)
    if len(settings.models) != 1:
        raise InputError(f"--models: expected one model to tune, got {','.join(settings.models)}")
    if settings.inner_validation == 0:
        settings = dataclasses.replace(settings, inner_validation=INNER_VALIDATION)
    search = Search(
        Space.parse(alpha, beta, gamma, lr),
        _whole("trials", trials, 1, 100_000),
        _whole("fold", fold, 0, settings.folds - 1),
        math.ceil(settings.epochs / 5)
        if prune_after is None
        else _whole("prune-after", prune_after, 1, 10**6),
    )
    run_tune(settings, search, resume, read_workers(workers), read_sharing(wait, stale_seconds))


def _whole(name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise InputError(f"--{name}: expected a whole number from {low} to {high}, got {text!r}")
    return int(text)


def run_tune(settings: Settings, search: Search, resume: bool, workers: int, sharing: Sharing) -> None:
    """Read the data, search, and write the result and the pictures.

    Raises:
        typer.Exit: interrupted.
    """
    from asegnet_fast.environment import check_backend, choose_device, keep_large_allocations
    from asegnet_fast.report.tuning import write_tuning_figures
    from asegnet_fast.training import distributed, tune
    from asegnet_fast.training.progress import Reporter
    from asegnet_fast.training.run_folder import check_network
    from asegnet_fast.training.search import (
        TrainingPart,
        check_search_folder,
        import_optuna,
        open_study,
        prepare_search,
    )
    from asegnet_fast.training.workers import run_workers

    import_optuna()
    if distributed.launched():
        raise InputError(
            "tune: expected to be started without torchrun, got several processes (use --workers)"
        )
    keep_large_allocations()
    check_search_folder(settings, search, resume)
    device = choose_device(settings.device)
    check_backend(settings.backend, device)
    check_network(settings)
    out = Path(settings.out)
    with Reporter() as reporter, resumable(settings.out, reporter):
        slices = load(settings, reporter)
        part = TrainingPart.of(slices, settings, search.fold)
        del slices
        prepare_search(settings, search, part.fingerprint, resume)
        reporter.say(f"device {device}, {settings.precision}, backend {settings.backend}")
        arguments = settings, search, part, sharing
        if workers > 1:
            run_workers(workers, reporter, tune.work_on_search, *arguments)
        else:
            tune.work_on_search(0, reporter, *arguments)
        study = open_study(settings, search)
        if not tune.has_enough(study, search):
            reporter.say("nothing left to begin; the last process to finish a trial writes the result")
            return
        best = tune.conclude(settings, search, study)
        pictures = write_tuning_figures(study, out)
        reporter.say(
            f"best of {sum(best['trials'].values())} trials ({best['trials']['pruned']} ended early): "
            f"trial {best['trial']}, {best['loss']}, learning rate {best['lr']:g}, inner Dice {best['inner_dice']:.4f}"
        )
        reporter.say(f"wrote {', '.join(str(out / name) for name in ('best.json', 'trials.csv', *pictures))}")
        reporter.say(best["note"])
        reporter.say(best["command"])
