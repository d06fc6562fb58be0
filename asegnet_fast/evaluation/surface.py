"""Distances between the surfaces of two masks, in millimetres.

The surface of a mask is its voxels that have a face neighbour outside it; voxels at the edge of the image belong to
it. Distances run between voxel centres, placed by the affine, so that anisotropic, oblique and sheared grids are
exact. The conventions are MONAI's: HD95 is the larger of the two directed 95th percentiles (linear between values),
and the average symmetric surface distance is the mean over all surface voxels of both masks.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

#: Surface Dice counts surface voxels as near within this many millimetres, as TotalSegmentator does.
TOLERANCE_MM = 3.0
_PERCENTILE = 95
# Two voxels exactly the tolerance apart are within it, whichever way their places were rounded.
_ROUNDING_MM = 1e-6


class SurfaceDistances(NamedTuple):
    """hd95 and assd in millimetres, surface_dice in 0..1. NaN where one of the masks or both are empty."""

    hd95: float
    assd: float
    surface_dice: float


UNDEFINED = SurfaceDistances(np.nan, np.nan, np.nan)


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray, tolerance: float = TOLERANCE_MM
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Args:
        prediction, truth: bool [X, Y, Z], or [X, Y] for a single slice. An axis of length 1 has no neighbours and
            makes no surface.
        affine: float [4, 4], voxel index to millimetres; a slice uses its first two columns.
        tolerance: of surface_dice, in millimetres.

    Returns:
        hd95, assd and surface_dice: the share of the surface voxels of both masks that lie within the tolerance of
        the other's surface (Nikolov et al. 2021, on voxels). All NaN where a mask is empty.

    Raises:
        ValueError: the masks have different shapes.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction: expected the shape of truth, {truth.shape}, got {prediction.shape}")
    axes = [axis for axis, n in enumerate(truth.shape) if n > 1]
    steps = np.asarray(affine, np.float64)[:3, : truth.ndim]
    points = [surface_voxels(mask, axes) @ steps.T for mask in (prediction, truth)]
    return _between(*points, tolerance)


def slice_surface_distances(
    prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray, axis: int, tolerance: float = TOLERANCE_MM
) -> list[SurfaceDistances]:
    """`surface_distances` of every slice of a volume by itself, inside its plane.

    Args:
        prediction, truth: bool [X, Y, Z].
        affine: float [4, 4], voxel index to millimetres.
        axis: the axis that counts the slices, 0..2.
        tolerance: see `surface_distances`.

    Returns:
        One entry for each slice.
    """
    axes = [other for other, n in enumerate(truth.shape) if other != axis and n > 1]
    steps = np.asarray(affine, np.float64)[:3, :3]
    sides = []
    for mask in (prediction, truth):
        voxels = surface_voxels(mask, axes)
        voxels = voxels[np.argsort(voxels[:, axis], kind="stable")]
        bounds = np.searchsorted(voxels[:, axis], np.arange(truth.shape[axis] + 1))
        sides.append((voxels @ steps.T, bounds))
    (ours, our_bounds), (theirs, their_bounds) = sides
    return [
        _between(
            ours[our_bounds[i] : our_bounds[i + 1]], theirs[their_bounds[i] : their_bounds[i + 1]], tolerance
        )
        for i in range(truth.shape[axis])
    ]


def surface_voxels(mask: np.ndarray, axes: list[int]) -> np.ndarray:
    """Indices of a mask's surface voxels.

    Args:
        mask: bool, any number of axes.
        axes: along which a voxel has neighbours.

    Returns:
        int64 [n, axes of the mask].
    """
    from scipy import ndimage

    box = bounding_box(mask)
    if box is None:
        return np.empty((0, mask.ndim), np.int64)
    # Outside its box a mask is empty, which is what erosion takes for granted outside an array.
    inner = mask[box]
    cross = np.zeros((3,) * mask.ndim, bool)
    cross[(1,) * mask.ndim] = True
    for axis in axes:
        cross[tuple(slice(None) if other == axis else 1 for other in range(mask.ndim))] = True
    surface = inner & ~ndimage.binary_erosion(inner, cross)
    return np.argwhere(surface) + [side.start for side in box]


def bounding_box(*masks: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds what is not zero in any of the masks of one shape; None where all are empty."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        there = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        if not len(there):
            return None
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def diagonal_mm(shape: tuple[int, ...], affine: np.ndarray) -> float:
    """The longest diagonal of a grid from edge to edge, in millimetres: no distance in the image is larger.

    Args:
        shape: voxels along each axis, two axes or three.
        affine: float [4, 4], voxel index to millimetres.
    """
    sides = np.asarray(affine, np.float64)[:3, : len(shape)] * np.asarray(shape)
    return float(max(np.linalg.norm(sides @ signs) for signs in product((1, -1), repeat=len(shape))))


def _between(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> SurfaceDistances:
    """Points [n, 3] and [m, 3] in millimetres."""
    from scipy.spatial import KDTree

    if not (len(ours) and len(theirs)):
        return UNDEFINED
    there = KDTree(theirs).query(ours)[0]
    back = KDTree(ours).query(theirs)[0]
    both = np.concatenate([there, back])
    return SurfaceDistances(
        hd95=float(max(np.percentile(there, _PERCENTILE), np.percentile(back, _PERCENTILE))),
        assd=float(both.mean()),
        surface_dice=float((both <= tolerance + _ROUNDING_MM).mean()),
    )
