"""Cross-validation: every row on every fold, resumable, summed up in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.environment import check_backend, choose_device
from asegnet_fast.errors import InputError
from asegnet_fast.files import create_json, read_json, write_json
from asegnet_fast.training import distributed
from asegnet_fast.training.config import Row, Settings
from asegnet_fast.training.jobs import (
    Job,
    Sharing,
    fold_identity,
    forget_given_up,
    run_jobs,
    state_of,
    train_folds,
    work,
)
from asegnet_fast.training.loop import TrainingError, finished_fold, fold_seconds
from asegnet_fast.training.metrics import summarise, trivial
from asegnet_fast.training.progress import Reporter
from asegnet_fast.training.run_folder import check_network, check_run_folder, read_run, run_config
from asegnet_fast.training.split import training_part
from asegnet_fast.training.workers import run_workers

if TYPE_CHECKING:
    from asegnet_fast.data import Folds, SliceSet


def load_data(settings: Settings, progress: Callable[[int, int, str], None] | None = None) -> SliceSet:
    """Read the slices that the settings name."""
    from asegnet_fast.data import load_slices

    return load_slices(
        settings.data,
        size=settings.size,
        intensity=settings.intensity,
        labels=settings.labels,
        select=settings.select,
        groups=settings.groups,
        cache=settings.cache,
        progress=progress,
    )


def prepare_run(settings: Settings, slices: SliceSet, resume: bool) -> Folds:
    """Make a run's folder with config.json and folds.json, or find this very run in it.

    Several processes may do so at the same time: one makes the run, the others then find it.

    Returns:
        The folds.

    Raises:
        ValueError: the folder holds something else, or the data cannot be split as asked.
    """
    from asegnet_fast.data import load_folds, make_folds, save_folds

    out = Path(settings.out)
    there = check_run_folder(settings, resume, slices.fingerprint)
    if there and (out / "folds.json").exists():
        folds = load_folds(out / "folds.json", slices)
        if (folds.split, folds.k, folds.seed) != (settings.split, settings.folds, settings.seed):
            raise InputError(f"{out / 'folds.json'}: expected this run's folds, got another split, k or seed")
        return folds
    folds = make_folds(slices, k=settings.folds, split=settings.split, seed=settings.seed)
    for fold in range(folds.k):
        training_part(settings, folds.train(fold), np.asarray(slices.groups), fold)
    out.mkdir(parents=True, exist_ok=True)
    config = run_config(settings, slices, folds.leak_percent)
    if not create_json(out / "config.json", config):  # another process was faster
        check_run_folder(settings, resume, slices.fingerprint)
    save_folds(out / "folds.json", folds, slices)
    return folds


def cross_validate(
    settings: Settings,
    slices: SliceSet,
    reporter: Reporter,
    resume: bool = False,
    after_fold: Callable[[Path, Row], None] | None = None,
    sharing: Sharing | None = None,
    workers: int = 1,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Train and measure every row on every fold, perhaps together with other processes that do the same.

    A fold whose loss stops being finite is given up and named; the others go on.

    Args:
        settings: of the run.
        slices: the data that `load_data(settings)` read.
        reporter: shows progress.
        resume: continue the run in `settings.out`, or help others who are at it: finished folds are kept, the others
            go on from their last checkpoint, and folds that another process trains are left to it.
        after_fold: called with each finished fold's folder and row, those kept from before among them; with `workers`
            it is a module's function.
        sharing: how to share the folds with other processes.
        workers: train in so many processes of this machine; 1: in this one.

    Returns:
        (the content of summary.json, or None where `sharing` does not wait and others still train;
        one line for each fold that was given up).

    Raises:
        ValueError: the folder holds something else, or the data cannot be split as asked.
        TrainingError: every fold was given up.
    """
    sharing = sharing or Sharing()
    check_backend(settings.backend, choose_device(settings.device))
    check_network(settings)
    distributed.everywhere(_check_same_data, distributed.on_first(lambda: slices.fingerprint), slices)
    folds = distributed.on_first(prepare_run, settings, slices, resume)
    jobs = run_jobs(settings, slices.fingerprint)
    distributed.on_first(forget_given_up, [job.folder for job in jobs])

    leaky = "leaky" if settings.split == "slice" else "groups stay whole"
    groups = len(np.unique(np.asarray(slices.groups)))
    reporter.say(
        f"{len(slices.images)} slices in {groups} groups; split by {settings.split} ({leaky}); "
        f"{folds.leak_percent:.1f} % of the test slices have a neighbour in training"
    )
    if after_fold is not None and distributed.first():
        for job in jobs:
            if job.is_finished():
                after_fold(job.folder, job.row)
    if workers > 1:
        run_workers(workers, reporter, work, settings, slices, folds, after_fold, sharing)
    else:
        train_folds(settings, slices, folds, reporter, after_fold, sharing)
    return distributed.on_first(_conclude, Path(settings.out), jobs, sharing)


def _check_same_data(fingerprint: str, slices: SliceSet) -> None:
    if slices.fingerprint != fingerprint:
        raise InputError("--data: expected the same slices on every machine, got others")


def _conclude(out: Path, jobs: Sequence[Job], sharing: Sharing) -> tuple[dict[str, Any] | None, list[str]]:
    """What `cross_validate` returns, once this process has nothing left to do."""
    remaining, given_up = state_of(jobs)
    if remaining and sharing.wait:
        raise TrainingError(f"{remaining} folds are not finished; the same command with --resume continues")
    if remaining:
        return None, given_up
    if len(given_up) == len(jobs):
        raise TrainingError(f"no fold finished; {given_up[0]}")
    return summarise_run(out), given_up


def finished_rows(
    run: Path, settings: Settings, config: dict[str, Any]
) -> list[tuple[Row, dict[int, dict[str, Any]]]]:
    """The finished folds of a run, row by row.

    Args:
        run: the folder.
        settings, config: of `read_run`.

    Returns:
        Each row that has a finished fold, with the content of metrics.json of those folds.

    Raises:
        ValueError: damaged files, or no finished fold.
    """
    rows = []
    for row in settings.rows():
        found = {}
        for fold in range(settings.folds):
            identity = fold_identity(settings, config["data"]["fingerprint"], row, fold)
            metrics = finished_fold(Path(run) / row.folder / f"fold{fold}", identity)
            if metrics is not None:
                found[fold] = metrics
        if found:
            rows.append((row, found))
    if not rows:
        raise InputError(f"{run}: expected a run with a finished fold, got none (continue it with --resume)")
    return rows


def summarise_run(run: Path) -> dict[str, Any]:
    """Sum up the finished folds of a run and write summary.json.

    Args:
        run: a folder that `cross_validate` wrote, finished or not.

    Returns:
        The content of summary.json; a row without a finished fold is left out of "rows".

    Raises:
        ValueError: no run, damaged files, or no finished fold.
    """
    run = Path(run)
    settings, config = read_run(run)
    rows, floor = [], None
    for row, found in finished_rows(run, settings, config):
        counts = [np.asarray(metrics["counts"], dtype=np.int64) for metrics in found.values()]
        if floor is None or len(counts) > floor[0]:
            floor = len(counts), trivial(counts)
        rows.append(
            {
                **row.to_json(),
                "folder": row.folder,
                "folds": len(found),
                **summarise(counts),
                "paper": row.paper(),
            }
        )
    summary = {
        "rows": rows,
        "split": settings.split,
        "leak_percent": config["data"]["leak_percent"],
        "folds": settings.folds,
        "epochs": settings.epochs,
        "tested_epoch": settings.tested_epoch,
        "trivial": floor[1],
        "missing_rows": [
            row.folder for row in settings.rows() if row.folder not in {r["folder"] for r in rows}
        ],
        "data": config["data"],
        "environment": config["environment"],
    }
    write_json(run / "summary.json", summary)
    return summary


def run_times(run: Path) -> list[dict[str, Any]]:
    """What the clock said of a run, row by row. It stands beside summary.json, which is the same at every repetition.

    Args:
        run: a folder that `cross_validate` wrote, finished or not.

    Returns:
        For each row {"folder", "seconds" of the epochs of its folds, "outside_convolution": what
        `profile.outside_convolution` found, or None}.

    Raises:
        ValueError: no run, or damaged files.
    """
    run = Path(run)
    times = []
    for row in read_run(run)[0].rows():
        folds = [path.parent for path in sorted((run / row.folder).glob("fold*/history.csv"))]
        profile = run / row.folder / "profile.json"
        times.append(
            {
                "folder": row.folder,
                "seconds": round(sum(map(fold_seconds, folds)), 3),
                "outside_convolution": read_json(profile) if profile.exists() else None,
            }
        )
    return times
