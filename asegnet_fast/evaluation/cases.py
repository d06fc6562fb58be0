"""Two masks on one grid measured: counts of every slice, distances, volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asegnet_fast.evaluation.overlap import pixel_counts
from asegnet_fast.evaluation.surface import (
    TOLERANCE_MM,
    UNDEFINED,
    SurfaceDistances,
    bounding_box,
    diagonal_mm,
    slice_surface_distances,
    surface_distances,
)

# Pixels counted at a time, which bounds the 8-byte indices that counting needs.
_PIXELS = 1 << 22


@dataclass(frozen=True, eq=False)
class Space:
    """What only masks on their own grid have: distances and volumes.

    Attributes:
        voxel_ml: millilitres of a voxel.
        diagonal: of the volume, in millimetres.
        slice_diagonal: of a slice, in millimetres.
        volume: float64 [classes, 3], hd95 (mm), assd (mm), surface_dice of the volume, as measured: NaN where a
            mask is empty.
        slices: float64 [slices, classes, 3], the same inside each slice.
    """

    voxel_ml: float
    diagonal: float
    slice_diagonal: float
    volume: np.ndarray
    slices: np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    """The slices of one volume that belong to one patient, measured.

    Attributes:
        name: the file, with the patient where a file holds several.
        unit: what is independent of the other cases: the patient, or the file where none is known.
        indices: index of each slice in its file.
        folds: the test fold of each slice, or None where there are no folds.
        labels: label value of each class; (1,) where all were merged.
        pixels: in a slice.
        counts: int64 [slices, classes, 4], TP, FP, FN, TN.
        space: distances and volumes, or None where only counts are known.
    """

    name: str
    unit: str
    indices: tuple[int, ...]
    folds: tuple[int, ...] | None
    labels: tuple[int, ...]
    pixels: int
    counts: np.ndarray
    space: Space | None


def measure_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    affine: np.ndarray,
    axis: int,
    labels: Sequence[int],
    name: str,
    unit: str | None = None,
    indices: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
    tolerance: float = TOLERANCE_MM,
) -> Case:
    """Measure a predicted mask against the truth.

    Args:
        prediction, truth: uint8 [X, Y, Z], 0 and 1 + the label's position in `labels`.
        affine: float [4, 4], voxel index to millimetres.
        axis: the axis that counts the slices, 0..2.
        labels: label values.
        name: of the case.
        unit: the patient; the name by default.
        indices: slices to measure; all by default. The others count as empty in both masks.
        folds: the test fold of each of these slices.
        tolerance: of surface_dice, in millimetres.

    Raises:
        ValueError: the masks have different shapes.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction: expected the shape of truth, {truth.shape}, got {prediction.shape}")
    indices = range(truth.shape[axis]) if indices is None else indices
    if len(indices) < truth.shape[axis]:
        prediction, truth = (_only(mask, axis, indices) for mask in (prediction, truth))
    classes = len(labels)
    ours, theirs = (np.moveaxis(mask, axis, 0) for mask in (prediction, truth))
    volume = np.full((classes, len(SurfaceDistances._fields)), UNDEFINED)
    slices = np.full((truth.shape[axis], *volume.shape), UNDEFINED)
    if (box := bounding_box(prediction, truth)) is not None:
        # Where both are empty nothing has a surface.
        within = slice(box[axis].start, box[axis].stop)
        for c in range(classes):
            pair = prediction[box] == c + 1, truth[box] == c + 1
            volume[c] = surface_distances(*pair, affine, tolerance)
            slices[within, c] = slice_surface_distances(*pair, affine, axis, tolerance)
    in_plane = [other for other in range(3) if other != axis]
    columns = np.asarray(affine, np.float64)[:, [*in_plane, axis, 3]]
    return Case(
        name=name,
        unit=name if unit is None else unit,
        indices=tuple(int(index) for index in indices),
        folds=None if folds is None else tuple(int(fold) for fold in folds),
        labels=tuple(int(label) for label in labels),
        pixels=truth.size // truth.shape[axis],
        counts=_counts(ours, theirs, list(indices), classes),
        space=Space(
            voxel_ml=float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3]))) / 1000,
            diagonal=diagonal_mm(truth.shape, affine),
            slice_diagonal=diagonal_mm(tuple(truth.shape[other] for other in in_plane), columns),
            volume=volume,
            slices=slices[list(indices)],
        ),
    )


def _counts(prediction: np.ndarray, truth: np.ndarray, indices: list[int], classes: int) -> np.ndarray:
    """Counts [n, classes, 4] of some slices of [slices, rows, columns], a few at a time."""
    step = max(1, _PIXELS // (truth.shape[1] * truth.shape[2]))
    parts = [np.zeros((0, classes, 4), np.int64)]
    for start in range(0, len(indices), step):
        some = indices[start : start + step]
        pair = (torch.from_numpy(np.ascontiguousarray(mask[some])) for mask in (prediction, truth))
        parts.append(pixel_counts(*pair, classes + 1).numpy())
    return np.concatenate(parts)


def _only(mask: np.ndarray, axis: int, indices: Sequence[int]) -> np.ndarray:
    """The mask with every other slice emptied."""
    kept = np.zeros_like(mask)
    where = tuple(list(indices) if other == axis else slice(None) for other in range(mask.ndim))
    kept[where] = mask[where]
    return kept
