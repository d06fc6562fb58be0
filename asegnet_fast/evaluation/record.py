"""All cases of one model, and the arrays that every table is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.cases import Case
from asegnet_fast.evaluation.conventions import DISTANCES, Conventions
from asegnet_fast.evaluation.overlap import MEASURES
from asegnet_fast.evaluation.surface import UNDEFINED

#: Measures of volume, per case: truth and prediction in ml, prediction - truth in ml and in percent of the truth.
VOLUMES = (
    "truth_volume",
    "predicted_volume",
    "volume_error",
    "absolute_volume_error",
    "volume_error_percent",
    "absolute_volume_error_percent",
)


@dataclass(frozen=True, eq=False)
class Record:
    """The measured cases of one model.

    Attributes:
        name: of the model, for tables.
        cases: in order; all with the same labels.
    """

    name: str
    cases: tuple[Case, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """Label value of each class."""
        return self.cases[0].labels

    @property
    def has_space(self) -> bool:
        """Whether distances and volumes are known."""
        return all(case.space is not None for case in self.cases)

    def measures(self) -> list[str]:
        """Names of the measures that are known, in the order of the tables."""
        return [*MEASURES, *(*DISTANCES, *VOLUMES) * self.has_space]

    def units(self) -> list[Hashable]:
        """The independent unit of each case."""
        return [case.unit for case in self.cases]

    def image_units(self) -> list[Hashable]:
        """The independent unit of each slice."""
        return [case.unit for case in self.cases for _ in case.indices]

    def image_folds(self) -> np.ndarray | None:
        """The test fold of each slice, int64 [slices], or None."""
        if any(case.folds is None for case in self.cases):
            return None
        return np.array([fold for case in self.cases for fold in case.folds], np.int64)

    def counts(self) -> np.ndarray:
        """int64 [cases, classes, 4]."""
        return np.stack([case.counts.sum(0) for case in self.cases])

    def image_counts(self) -> np.ndarray:
        """int64 [slices, classes, 4]."""
        return np.concatenate([case.counts for case in self.cases])

    def values(self, name: str, conventions: Conventions) -> np.ndarray:
        """A measure of every case, float64 [cases, classes]."""
        if name in MEASURES:
            return conventions.overlap(name)(self.counts())
        if name in DISTANCES:
            measured = np.stack([case.space.volume[:, DISTANCES.index(name)] for case in self.cases])
            diagonals = np.array([case.space.diagonal for case in self.cases])[:, None]
            return conventions.distance(name, measured, self.counts(), diagonals)
        return self._volumes(name)

    def image_values(self, name: str, conventions: Conventions) -> np.ndarray | None:
        """A measure of every slice, float64 [slices, classes]; None for volumes."""
        if name in MEASURES:
            return conventions.overlap(name)(self.image_counts())
        if name in VOLUMES:
            return None
        measured = np.concatenate([case.space.slices[..., DISTANCES.index(name)] for case in self.cases])
        diagonals = [case.space.slice_diagonal for case in self.cases for _ in case.indices]
        return conventions.distance(name, measured, self.image_counts(), np.array(diagonals)[:, None])

    def _volumes(self, name: str) -> np.ndarray:
        tp, fp, fn, _ = np.moveaxis(self.counts(), -1, 0)
        ml = np.array([case.space.voxel_ml for case in self.cases])[:, None]
        truth, predicted = (tp + fn) * ml, (tp + fp) * ml
        if name == "truth_volume":
            return truth
        if name == "predicted_volume":
            return predicted
        error = predicted - truth
        if name.endswith("percent"):
            error = np.where(truth > 0, 100 * error / np.where(truth > 0, truth, 1), np.nan)
        return np.abs(error) if name.startswith("absolute") else error


def gather(name: str, cases: Iterable[Case]) -> Record:
    """A record of cases, each class given a place in every case.

    Args:
        name: of the model.
        cases: measured, their labels as found in each.

    Raises:
        ValueError: no case, or no label in any mask.
    """
    cases = list(cases)
    if not cases:
        raise InputError(f"{name}: expected at least one case, got none")
    labels = tuple(sorted(set().union(*(case.labels for case in cases))))
    if not labels:
        raise InputError(f"{name}: expected a label above 0 in a mask, got none in {len(cases)} cases")
    return Record(name, tuple(_with_labels(case, labels) for case in cases))


def _with_labels(case: Case, labels: tuple[int, ...]) -> Case:
    if case.labels == labels:
        return case
    places = [labels.index(label) for label in case.labels]
    shape = (len(case.indices), len(labels))
    counts = np.zeros((*shape, 4), np.int64)
    # A class that occurs in neither mask is background everywhere.
    counts[..., 3] = case.pixels
    counts[:, places] = case.counts
    space = case.space
    if space is not None:
        volume, slices = (np.full((*size, 3), UNDEFINED) for size in (shape[1:], shape))
        volume[places], slices[:, places] = space.volume, space.slices
        space = dataclasses.replace(space, volume=volume, slices=slices)
    return dataclasses.replace(case, labels=labels, counts=counts, space=space)
