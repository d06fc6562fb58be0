"""Seeds of a fold, and what of it is trained on and what is set aside."""

from __future__ import annotations

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.training import distributed
from asegnet_fast.training.config import Settings


def derived_seed(seed: int, fold: int | None, purpose: int, *further: int) -> int:
    """A seed of its own for each fold and purpose, the same for every loss, so that rows compare.

    No fold counts as fold 0: a model trained on all slices starts from the weights of fold 0.
    Purposes: 0 weights, 1 inner validation, 2 order of slices, 3 torch's own generator, 4 (and epoch) augmentation.
    """
    return int(np.random.SeedSequence([seed, fold or 0, purpose, *further]).generate_state(1)[0])


def inner_split(train: np.ndarray, groups: np.ndarray, share: float, by_group: bool, seed: int) -> tuple:
    """Part the training slices into those trained on and an inner validation set.

    Args:
        train: indices of the fold's training slices.
        groups: the group of every slice of the data set.
        share: share of the training slices to set aside, 0 for none.
        by_group: whether groups stay whole.
        seed: decides which are set aside.

    Returns:
        (training indices, inner validation indices), both sorted.

    Raises:
        ValueError: nothing would be left on one side.
    """
    if share == 0:
        return train, train[:0]
    units = np.asarray(groups)[train] if by_group else np.arange(len(train))
    names = np.unique(units)
    if len(names) < 2:
        raise InputError(
            f"--inner-validation: expected at least 2 groups in each fold's training part, got {len(names)}"
        )
    wanted = max(1, round(share * len(train)))
    aside = np.zeros(len(train), dtype=bool)
    for name in np.random.default_rng(seed).permutation(names)[:-1]:
        aside |= units == name
        if aside.sum() >= wanted:
            break
    return train[~aside], train[aside]


def training_part(
    settings: Settings, train: np.ndarray, groups: np.ndarray, fold: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a fold trains on, and its inner validation set.

    Args:
        settings: the run's settings.
        train: indices of the fold's training slices.
        groups: the group of every slice of the data set.
        fold: 0..settings.folds-1, or None where all slices are trained on.

    Returns:
        (training indices, inner validation indices), both sorted.

    Raises:
        ValueError: nothing would be left on one side, or less than one batch to train on.
    """
    by_group = settings.split == "patient"
    seed = derived_seed(settings.seed, fold, 1)
    train, inner = inner_split(train, groups, settings.inner_validation, by_group, seed)
    if len(train) < settings.batch_size:
        raise InputError(
            f"--batch-size: expected at most {len(train)}, the training slices"
            f"{'' if fold is None else f' of fold {fold}'}, "
            f"got {settings.batch_size}"
        )
    if settings.batch_size < distributed.size():
        raise InputError(
            f"--batch-size: expected at least {distributed.size()}, a slice for each process, "
            f"got {settings.batch_size}"
        )
    return train, inner
