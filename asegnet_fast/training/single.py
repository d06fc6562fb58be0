"""One model: trained on all slices of a set, or on all but one fold's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.environment import check_backend, choose_device
from asegnet_fast.errors import InputError
from asegnet_fast.files import create_json, read_json
from asegnet_fast.training import distributed
from asegnet_fast.training.config import Settings
from asegnet_fast.training.jobs import Job, Sharing, fold_identity, forget_given_up, on_device, work_through
from asegnet_fast.training.loop import TrainingError, finished_fold, run_fold
from asegnet_fast.training.progress import Reporter
from asegnet_fast.training.run_folder import check_network, check_run_folder, run_config
from asegnet_fast.training.split import training_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from asegnet_fast.data import Folds, SliceSet


def settings_of_folds(settings: Settings, folds_file: Path) -> Settings:
    """The settings with the kind of split and the number of folds that a folds file has.

    Raises:
        ValueError: no folds file.
    """
    head = read_json(folds_file)
    if head.get("split") not in ("patient", "slice") or not isinstance(head.get("k"), int) or head["k"] < 2:
        raise InputError(f"{folds_file}: expected a file of folds as crossval writes it, got another")
    return dataclasses.replace(settings, split=head["split"], folds=head["k"])


def check_fold(settings: Settings, fold: int | None, folds_file: Path | None) -> None:
    """Refuse a fold that there is none of.

    Raises:
        ValueError: the message names the option.
    """
    if fold is None and folds_file is not None:
        raise InputError("--folds-file: expected --fold K beside it, got it alone")
    if fold is not None and not 0 <= fold < settings.folds:
        raise InputError(f"--fold: expected a whole number from 0 to {settings.folds - 1}, got {fold}")


def train_model(
    settings: Settings,
    slices: SliceSet,
    reporter: Reporter,
    resume: bool = False,
    fold: int | None = None,
    folds_file: Path | None = None,
) -> dict[str, Any]:
    """Train one model with one loss, and measure it where slices are held out.

    Args:
        settings: with one model and one loss.
        slices: the data that `load_data(settings)` read.
        reporter: shows progress.
        resume: continue the run in `settings.out`.
        fold: leave out the slices of this fold and measure on them; None: train on all.
        folds_file: take the folds from this file (`settings_of_folds` has been applied); None: draw them as
            `cross_validate` does, so that the model is the one of that fold in a cross-validation.

    Returns:
        The content of metrics.json; without held-out slices it has no measures.

    Raises:
        ValueError: the folder holds something else, or the data cannot be split as asked.
        TrainingError: the loss became NaN or infinite, or another process trains this model.
    """
    import asegnet_fast as af

    check_fold(settings, fold, folds_file)
    check_backend(settings.backend, choose_device(settings.device))
    check_network(settings)
    row, out = settings.rows()[0], Path(settings.out)
    folds = distributed.on_first(_prepare, settings, slices, resume, fold, folds_file)
    if folds is None:
        split = np.arange(len(slices)), np.arange(0)
    else:
        split = np.asarray(folds.train(fold)), np.asarray(folds.test_indices(fold))
    identity = fold_identity(settings, slices.fingerprint, row, fold)
    job = Job(row, fold, out, identity)
    distributed.on_first(forget_given_up, [out])

    def train(_: Job, go_on: Callable[[], None]) -> None:
        run_fold(settings, row, fold, split, on_device(settings, slices), out, identity, reporter, go_on)

    with af.use_backend(settings.backend):
        work_through([job], train, reporter, Sharing(wait=False))
    if (failure := distributed.on_first(job.given_up)) is not None:
        raise TrainingError(failure)
    metrics = distributed.on_first(finished_fold, out, identity)
    if metrics is None:
        raise TrainingError(f"another process trains in {out}; nothing was done here")
    return metrics


def _prepare(
    settings: Settings, slices: SliceSet, resume: bool, fold: int | None, folds_file: Path | None
) -> Folds | None:
    """Make the folder with config.json and, where a fold is held out, folds.json, or find this very run in it."""
    from asegnet_fast.data import load_folds, make_folds, save_folds

    out = Path(settings.out)
    there = check_run_folder(settings, resume, slices.fingerprint, "train", fold)
    folds = None
    if fold is not None and folds_file is not None:
        folds = load_folds(folds_file, slices)
    elif fold is not None:
        folds = make_folds(slices, k=settings.folds, split=settings.split, seed=settings.seed)
    if there and folds is not None and (out / "folds.json").exists():
        if load_folds(out / "folds.json", slices).test != folds.test:
            raise InputError(f"{out / 'folds.json'}: expected the folds asked for, got others")
    train = np.arange(len(slices)) if folds is None else np.asarray(folds.train(fold))
    training_part(settings, train, np.asarray(slices.groups), fold)
    out.mkdir(parents=True, exist_ok=True)
    if not there:
        config = run_config(settings, slices, 0.0 if folds is None else folds.leak_percent)
        if not create_json(out / "config.json", {"kind": "train", "fold": fold} | config):
            check_run_folder(settings, resume, slices.fingerprint, "train", fold)
    if folds is not None and not (out / "folds.json").exists():
        save_folds(out / "folds.json", folds, slices)
    return folds
