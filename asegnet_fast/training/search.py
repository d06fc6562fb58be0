"""What a search is, the data it may see, and its folder."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.files import check_writable, create_json, is_temporary, read_json
from asegnet_fast.training.config import Settings, convert, differences
from asegnet_fast.training.space import Space
from asegnet_fast.training.split import training_part
from asegnet_fast.training.steps import Slices

if TYPE_CHECKING:
    import optuna

    from asegnet_fast.data import SliceSet

JOURNAL, PLAN = "journal.log", "tune.json"
#: How many trials must be measured at an epoch before others are compared with their median.
MEDIAN_TRIALS = 5


@dataclass(frozen=True)
class Search:
    """What is searched, and how long.

    space: the ranges. trials: how many are finished or pruned in the end. fold: whose training part is used.
    prune_after: epochs that every trial gets before it may be ended for being worse than the median.
    """

    space: Space
    trials: int
    fold: int
    prune_after: int

    def to_json(self) -> dict[str, Any]:
        """What must be the same for a search to be resumed; more trials may be asked for."""
        return {"space": self.space.to_json(), "fold": self.fold, "prune_after": self.prune_after}


@dataclass(frozen=True)
class TrainingPart:
    """The slices of a fold's training part alone: images and masks uint8 [N, S, S], groups [N]."""

    images: np.ndarray
    masks: np.ndarray
    groups: np.ndarray
    num_classes: int
    fingerprint: str  # of the whole data set

    @classmethod
    def of(cls, slices: SliceSet, settings: Settings, fold: int) -> TrainingPart:
        """The training part of a fold of `crossval` with these settings; the test slices are left behind.

        Raises:
            ValueError: there is no such fold, or its training part cannot be divided as the settings say.
        """
        from asegnet_fast.data import make_folds

        folds = make_folds(slices, k=settings.folds, split=settings.split, seed=settings.seed)
        train = folds.train(fold)
        part = cls(
            np.ascontiguousarray(slices.images[train]),
            np.ascontiguousarray(slices.masks[train]),
            np.asarray(slices.groups)[train],
            slices.num_classes,
            slices.fingerprint,
        )
        training_part(settings, np.arange(len(train)), part.groups, fold)
        return part

    def on(self, device: str) -> Slices:
        """The same on a device."""
        import torch

        images, masks = (torch.from_numpy(array).to(device) for array in (self.images, self.masks))
        return Slices(images, masks, self.groups, self.num_classes)


def import_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError(
            "tune: expected the package optuna, got none (pip install 'asegnet-fast[tune]')"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def prepare_search(settings: Settings, search: Search, fingerprint: str, resume: bool) -> None:
    """Make the folder of a search, or find this very search in it.

    Raises:
        ValueError: the folder holds something else, or this search and `resume` is false.
    """
    out = Path(settings.out)
    plan = {
        "settings": settings.to_json(),
        "search": search.to_json(),
        "fingerprint": fingerprint,
    }
    check_search_folder(settings, search, resume, fingerprint)
    out.mkdir(parents=True, exist_ok=True)
    if create_json(out / PLAN, plan):
        paper = search.space.paper_point()
        if paper is not None:
            open_study(settings, search).enqueue_trial(paper, skip_if_exists=True)
    else:
        check_search_folder(settings, search, resume, fingerprint)


def check_search_folder(
    settings: Settings, search: Search, resume: bool, fingerprint: str | None = None
) -> None:
    """Refuse to write over anything but this very search; arguments and errors as for `prepare_search`."""
    out = Path(settings.out)
    check_writable(out)
    if not out.exists() or all(is_temporary(path) for path in out.iterdir()):
        return
    if not (out / PLAN).exists():
        raise InputError(
            f"--out: expected a new or empty folder or a search, got {out} with other files in it"
        )
    plan = read_json(out / PLAN)
    try:
        there = {key: value for key, value in plan["settings"].items() if value is not None}
        there = Settings(**convert(there | {"out": str(out)})).run_key() | plan["search"]
    except (InputError, KeyError, TypeError, AttributeError):
        raise InputError(f"{out / PLAN}: expected the plan of a search, got a damaged one") from None
    changed = differences(there, settings.run_key() | search.to_json())
    if fingerprint is not None and plan.get("fingerprint") != fingerprint:
        changed.append("data: other slices there than asked")
    if changed:
        raise InputError(f"--out: expected this search in {out}, got another ({'; '.join(changed)})")
    if not resume:
        raise InputError(
            f"--out: expected a new folder, got {out} with this search in it (continue it with --resume)"
        )


def open_study(settings: Settings, search: Search) -> optuna.Study:
    """The search's state, shared by all its processes: Optuna's journal file, which is safe on NFS."""
    optuna = import_optuna()
    file = Path(settings.out) / JOURNAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is experimental
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
        return optuna.create_study(
            storage=storage,
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(MEDIAN_TRIALS, n_warmup_steps=search.prune_after),
        )
