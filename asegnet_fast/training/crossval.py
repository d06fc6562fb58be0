"""Cross-validation: every row on every fold, resumable, summed up in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.environment import check_backend, choose_device, environment
from asegnet_fast.files import read_json, write_json
from asegnet_fast.training.config import Row, Settings, convert, differences
from asegnet_fast.training.loop import Slices, TrainingError, finished_fold, run_fold
from asegnet_fast.training.metrics import summarise, trivial
from asegnet_fast.training.profile import outside_convolution
from asegnet_fast.training.progress import Reporter

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet


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


def read_run(run: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings of the run in a folder, and its whole config.json.

    Raises:
        ValueError: the folder holds no run, or a damaged one.
    """
    if not (Path(run) / "config.json").is_file():
        raise ValueError(f"{run}: expected a folder with a run (config.json), got none")
    config = read_json(Path(run) / "config.json")
    if not {"settings", "data", "environment"} <= set(config):
        raise ValueError(f"{Path(run) / 'config.json'}: expected settings, data and environment, got less")
    given = {key: value for key, value in config["settings"].items() if value is not None}
    return Settings(**convert(given | {"out": str(run)})), config


def check_run_folder(settings: Settings, resume: bool, fingerprint: str | None = None) -> bool:
    """Refuse to write over anything but this very run.

    Args:
        settings: of the run to be made.
        resume: whether a run that is there may be continued.
        fingerprint: of the data, or None where they are not read yet.

    Returns:
        Whether the folder already holds this run.

    Raises:
        ValueError: the folder is a file, holds other files, holds another run (the difference is named), or
            holds this run and `resume` is false.
    """
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, got a file ({out})")
    if not out.exists() or not any(out.iterdir()):
        return False
    if not (out / "config.json").exists():
        raise ValueError(f"--out: expected a new or empty folder or a run, got {out} with other files in it")
    old, config = read_run(out)
    changed = differences(old.run_key(), settings.run_key())
    if fingerprint is not None and config["data"].get("fingerprint") != fingerprint:
        changed.append("data: other slices there than asked")
    if changed:
        raise ValueError(
            f"--out: expected a run with the same settings in {out}, got another ({'; '.join(changed)})"
        )
    if not resume:
        raise ValueError(
            f"--out: expected a new folder, got {out} with this run in it (continue it with --resume)"
        )
    return True


def cross_validate(
    settings: Settings,
    slices: SliceSet,
    reporter: Reporter,
    resume: bool = False,
    after_fold: Callable[[Path, Row], None] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Train and measure every row on every fold.

    A fold whose loss stops being finite is given up and named; the others go on.

    Args:
        settings: of the run.
        slices: the data that `load_data(settings)` read.
        reporter: shows progress.
        resume: continue the run in `settings.out`: finished folds are kept, the others go on from their
            last checkpoint.
        after_fold: called with each finished fold's folder and row.

    Returns:
        (the content of summary.json, one line for each fold that was given up).

    Raises:
        ValueError: the folder holds something else, or the data cannot be split as asked.
        TrainingError: every fold was given up.
    """
    import torch

    import asegnet_fast as af
    from asegnet_fast.data import load_folds, make_folds, save_folds

    out = Path(settings.out)
    device = choose_device(settings.device)
    check_backend(settings.backend, device)
    there = check_run_folder(settings, resume, slices.fingerprint)
    if there and (out / "folds.json").exists():
        folds = load_folds(out / "folds.json", slices)
    else:
        folds = make_folds(slices, k=settings.folds, split=settings.split, seed=settings.seed)
        out.mkdir(parents=True, exist_ok=True)
        config = {
            "settings": settings.to_json(),
            "data": {
                "fingerprint": slices.fingerprint,
                "slices": len(slices.images),
                "num_classes": slices.num_classes,
                "label_values": [int(value) for value in slices.label_values],
                "notes": list(slices.notes),
                "leak_percent": folds.leak_percent,
            },
            "environment": environment(device),
        }
        write_json(out / "config.json", config)
        save_folds(out / "folds.json", folds, slices)

    leaky = "leaky" if settings.split == "slice" else "groups stay whole"
    groups = len(np.unique(np.asarray(slices.groups)))
    reporter.say(
        f"{len(slices.images)} slices in {groups} groups; split by {settings.split} ({leaky}); "
        f"{folds.leak_percent:.1f} % of the test slices have a neighbour in training"
    )

    on_device = Slices(
        images=torch.from_numpy(np.ascontiguousarray(slices.images)).to(device),
        masks=torch.from_numpy(np.ascontiguousarray(slices.masks)).to(device),
        groups=np.asarray(slices.groups),
        num_classes=slices.num_classes,
    )
    given_up: list[str] = []
    rows = settings.rows()
    with af.use_backend(settings.backend):
        for r, row in enumerate(rows):
            for fold in range(settings.folds):
                folder = out / row.folder / f"fold{fold}"
                reporter.folds(r * settings.folds + fold, len(rows) * settings.folds, row.folder, fold)
                identity = fold_identity(settings, slices.fingerprint, row, fold)
                if there and finished_fold(folder, identity) is not None:
                    continue
                split = np.asarray(folds.train(fold)), np.asarray(folds.test_indices(fold))
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    metrics = run_fold(settings, row, fold, split, on_device, folder, identity, reporter)
                except TrainingError as error:
                    given_up.append(str(error))
                    reporter.say(f"given up: {error}")
                    continue
                reporter.say(
                    f"{row.folder}/fold{fold}  Dice {metrics['dice']['pooled']:.4f}  "
                    f"{settings.epochs} epochs in {metrics['seconds']:.1f} s"
                )
                if after_fold is not None:
                    after_fold(folder, row)
            if settings.profile:
                share = outside_convolution(settings, row, on_device, np.asarray(folds.train(0)))
                write_json(out / row.folder / "profile.json", share)
    if given_up and not any(out.glob("*/fold*/metrics.json")):
        raise TrainingError(f"no fold finished; {given_up[0]}")
    return summarise_run(out), given_up


def fold_identity(settings: Settings, fingerprint: str, row: Row, fold: int) -> dict[str, Any]:
    """What a fold's files carry, so that they are never taken for another run's."""
    return {"run": settings.run_key(), "data": fingerprint, "row": row.folder, "fold": fold}


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
    for row in settings.rows():
        found = []
        for fold in range(settings.folds):
            identity = fold_identity(settings, config["data"]["fingerprint"], row, fold)
            metrics = finished_fold(run / row.folder / f"fold{fold}", identity)
            if metrics is not None:
                found.append(metrics)
        if not found:
            continue
        counts = [np.asarray(metrics["counts"], dtype=np.int64) for metrics in found]
        if floor is None or len(counts) > floor[0]:
            floor = len(counts), trivial(counts)
        profile = run / row.folder / "profile.json"
        rows.append(
            {
                **row.to_json(),
                "folder": row.folder,
                "folds": len(found),
                **summarise(counts),
                "paper": row.paper(),
                "seconds": round(sum(metrics["seconds"] for metrics in found), 3),
                "outside_convolution": read_json(profile) if profile.exists() else None,
            }
        )
    if floor is None:
        raise ValueError(f"{run}: expected a run with a finished fold, got none (continue it with --resume)")
    summary = {
        "rows": rows,
        "split": settings.split,
        "leak_percent": config["data"]["leak_percent"],
        "folds": settings.folds,
        "epochs": settings.epochs,
        "trivial": floor[1],
        "missing_rows": [
            row.folder for row in settings.rows() if row.folder not in {r["folder"] for r in rows}
        ],
        "data": config["data"],
        "environment": config["environment"],
    }
    write_json(run / "summary.json", summary)
    return summary
