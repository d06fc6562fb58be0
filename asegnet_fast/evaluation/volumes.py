"""Networks against a data folder: every volume predicted, brought back to its own grid, and measured there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asegnet_fast.data import Volume, load_image, read_volume
from asegnet_fast.data.grid import check_same_space
from asegnet_fast.data.layout import discover
from asegnet_fast.data.notes import Notes
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.cases import Case, measure_case
from asegnet_fast.evaluation.masks import Progress, code_both, millimetres, note_grid, parts, patients_of
from asegnet_fast.evaluation.surface import TOLERANCE_MM

_BATCH = 8


class Predictor(Protocol):
    """What predicts slices; `asegnet_fast.inference.Ensemble` is one.

    size: side in pixels of the slices it takes; intensity: how values become grey levels; values: label of class 1,
    2, ... A call with uint8 [n, size, size], (rows, columns) and `attention=False` gives one object for each slice,
    whose `labels` are uint8 [rows, columns] on any device.
    """

    size: int
    intensity: str
    values: tuple[int, ...]

    def __call__(self, images: np.ndarray, shape: tuple[int, int], attention: bool) -> Iterator[Any]: ...


def belongs_to_run(data: Path, slices: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether a data folder has a file of a run, by its name: then networks of the run may have trained on it.

    Args:
        data: in one of the layouts of `data.layout.discover`.
        slices: of `fold_slices`.
    """
    files = {where["file"] for fold in slices for where in fold}
    return any(pair.image in files for pair in discover(data)[0])


def measure_volumes(
    data: Path,
    predictors: Mapping[int | None, Predictor],
    slices: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    labels: str = "merge",
    select: str = "lesion",
    groups: Path | None = None,
    tolerance: float = TOLERANCE_MM,
    progress: Progress | None = None,
    notes: Notes | None = None,
) -> Iterator[Case]:
    """Predict and measure the volumes of a data folder, one in memory at a time.

    Args:
        data: in one of the layouts of `data.layout.discover`.
        predictors: {None: what predicts every slice}; or, with `slices`, what predicts the test slices of each fold.
        slices: the test slices of every fold (`fold_slices`): only these are measured, each by its own fold's
            predictor, and they say whose patient a slice is. With `select="all"` the slices that a run left out for
            want of a lesion count too, where their file belongs to one fold and one patient.
        labels: `merge` makes every label above 0 one class, `keep` measures each label by itself.
        select: slices with a true `lesion`, or `all`.
        groups: CSV file,first,last,patient; see `measure_masks`. Not with `slices`.
        tolerance: of surface_dice, in millimetres.
        progress: called as progress(volumes done, volumes in all, volume just done).
        notes: receives what the user must be told.

    Raises:
        DataError: a file that cannot be used.
    """
    pairs, _ = discover(data)
    how = _How(predictors, labels, select, tolerance, notes or Notes())
    patients = {}
    if groups is not None:
        patients = patients_of(groups, {pair.image: Path(data) / pair.image for pair in pairs})
    for done, pair in enumerate(pairs, 1):
        listed = None if slices is None else _listed(slices, pair.image)
        # What no predictor may answer is not read.
        if listed is None or any(fold in predictors for fold, _ in listed.values()):
            truth = read_volume(Path(data) / pair.mask, pair.mask)
            yield from _measure(
                Path(data) / pair.image, truth, pair.image, listed, patients.get(pair.image), how
            )
        if progress:
            progress(done, len(pairs), pair.image)


@dataclasses.dataclass(frozen=True)
class _How:
    """What is the same for every volume; see `measure_volumes`."""

    predictors: Mapping[int | None, Predictor]
    labels: str
    select: str
    tolerance: float
    notes: Notes


def _measure(
    image: Path,
    truth: Volume,
    name: str,
    listed: dict[int, tuple[int, str]] | None,
    patients: Sequence[str] | None,
    how: _How,
) -> Iterator[Case]:
    n = truth.slices_shape[0]
    folds: list[int | None] = [None] * n
    if listed is not None:
        folds, patients, left_out = _spread(listed, n, how.select)
        if left_out:
            how.notes.add("slices of no fold, in files of several folds or patients, are left out", name)
    chosen = [index for index in range(n) if folds[index] in how.predictors]
    if how.select == "lesion":
        lesion = truth.to_slices(truth.data > 0).any(axis=(1, 2))
        chosen = [index for index in chosen if lesion[index]]
    if not chosen:
        return
    prediction = _predicted(image, name, truth, {index: folds[index] for index in chosen}, how)
    note_grid(truth, how.notes)
    values, coded = code_both(prediction, truth, how.labels)
    for case, unit, indices in parts(name, patients, chosen):
        yield measure_case(
            *coded,
            millimetres(truth),
            truth.axial_axis,
            values,
            case,
            unit,
            indices,
            None if listed is None else [folds[index] for index in indices],
            how.tolerance,
        )


def _predicted(
    image: Path,
    name: str,
    truth: Volume,
    folds: Mapping[int, int | None],
    how: _How,
) -> Volume:
    """The truth's volume with predicted label values on some slices, 0 on all others."""
    predictors = how.predictors
    kinds = {(predictors[fold].size, predictors[fold].intensity) for fold in folds.values()}
    if len(kinds) > 1:
        raise InputError(
            "--checkpoint: expected networks that take the same slices, got several sizes or intensities"
        )
    size, intensity = kinds.pop()
    volume, images, remarks = load_image(image, size, intensity)
    check_same_space(volume, truth)
    for remark in remarks:
        how.notes.add(remark.removeprefix(f"{image}: "), name)
    _, rows, columns = volume.slices_shape
    answer = np.zeros((len(images), rows, columns), np.int64 if _wide(predictors) else np.uint8)
    for fold in set(folds.values()):
        predictor = predictors[fold]
        values = np.array([0, *predictor.values], answer.dtype)
        mine = [index for index, other in folds.items() if other == fold]
        for start in range(0, len(mine), _BATCH):
            some = mine[start : start + _BATCH]
            for index, one in zip(some, predictor(images[some], (rows, columns), False), strict=True):
                answer[index] = values[one.labels.cpu().numpy()]
    data = np.ascontiguousarray(volume.from_slices(answer))
    return dataclasses.replace(truth, name=f"prediction of {name}", data=data)


def _wide(predictors: Mapping[int | None, Predictor]) -> bool:
    return max(value for predictor in predictors.values() for value in predictor.values) > 255


def _listed(slices: Sequence[Sequence[Mapping[str, Any]]], file: str) -> dict[int, tuple[int, str]]:
    """Slice index -> (test fold, patient) of a file's slices in a run."""
    return {
        where["index"]: (fold, where["group"])
        for fold, part in enumerate(slices)
        for where in part
        if where["file"] == file
    }


def _spread(
    listed: dict[int, tuple[int, str]], n: int, select: str
) -> tuple[list[int | None], list[str], bool]:
    """Test fold and patient of every slice of a file (-1 and "" for none), and whether some slices have none."""
    nowhere = (-1, "")
    if select == "all" and len(set(listed.values())) == 1:
        nowhere = next(iter(listed.values()))
    places = [listed.get(index, nowhere) for index in range(n)]
    left_out = select == "all" and (-1, "") in places
    return [fold for fold, _ in places], [group for _, group in places], left_out
