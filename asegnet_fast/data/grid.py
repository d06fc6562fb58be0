"""Where a volume's voxels lie, and how its stored axes become axial slices."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel
import numpy as np

from asegnet_fast.data.errors import DataError

UNUSABLE = "cannot be inverted"
# NIfTI's codes for metres and micrometres, in millimetres; anything else is taken for millimetres, as viewers do.
_UNIT_MM = {1: 1000.0, 3: 0.001}


@dataclass(frozen=True)
class Grid:
    """The grid of a three-dimensional volume.

    Attributes:
        name: how messages call the file.
        shape: (X, Y, Z) as stored.
        affine: [4, 4] voxel index to the file's unit of length (RAS+); the identity where the file's is unusable.
        orientation: [3, 2] nibabel orientation of the stored axes.
        affine_problem: why the affine cannot be trusted, or None.
        unit_mm: millimetres in the file's unit of length.
    """

    name: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: np.ndarray
    affine_problem: str | None
    unit_mm: float

    @property
    def axial_axis(self) -> int:
        """The stored axis closest to head-foot; the last one where the affine says nothing."""
        return int(np.flatnonzero(self.orientation[:, 0] == 2)[0])

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        """(number of axial slices, rows, columns)."""
        order, _ = self._display_order()
        return tuple(self.shape[axis] for axis in order)

    @property
    def voxel_ml(self) -> float | None:
        """Millilitres of a voxel; None where the affine is unusable."""
        if self.affine_problem == UNUSABLE:
            return None
        return abs(float(np.linalg.det(self.affine[:3, :3]))) * self.unit_mm**3 / 1000

    @property
    def slice_spacing(self) -> tuple[float, float]:
        """Millimetres between rows and between columns of an axial slice."""
        (_, rows, columns), _ = self._display_order()
        sizes = nibabel.affines.voxel_sizes(self.affine) * self.unit_mm
        return float(sizes[rows]), float(sizes[columns])

    def _display_order(self) -> tuple[tuple[int, int, int], tuple[bool, bool]]:
        """Stored axes in the order (slice, row, column), and whether rows and columns are reversed."""
        of = {int(target): axis for axis, target in enumerate(self.orientation[:, 0])}
        # Rows run to the back and columns to the patient's left; the stored axes may point either way.
        flip_rows = self.orientation[of[1], 1] > 0
        flip_columns = self.orientation[of[0], 1] > 0
        return (of[2], of[1], of[0]), (bool(flip_rows), bool(flip_columns))

    def to_slices(self, data: np.ndarray) -> np.ndarray:
        """Views an array as axial slices [n, rows, columns] in radiological display orientation.

        Rows run from front to back and columns from the patient's right to left. Slices keep the stored
        order, so position k is index k of the file's axial axis.

        Args:
            data: [X, Y, Z] in the stored axes, all of the volume or some of its axial slices.
        """
        order, (flip_rows, flip_columns) = self._display_order()
        view = np.transpose(data, order)
        return view[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def from_slices(self, slices: np.ndarray) -> np.ndarray:
        """Views axial slices [n, rows, columns] in the file's stored axes; undoes `to_slices`."""
        order, (flip_rows, flip_columns) = self._display_order()
        view = slices[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return np.transpose(view, np.argsort(order))

    def remarks(self) -> list[str]:
        """What a user must be told about the grid before its slices are taken, without the file's name."""
        told = []
        if self.affine_problem:
            axis = ("first", "second", "third")[self.axial_axis]
            told.append(
                f"the affine {self.affine_problem}; slices are taken along the {axis} axis and may be turned"
            )
        _, rows, columns = self.slices_shape
        if rows != columns:
            told.append("slices are not square; resized without keeping the aspect ratio")
        return told


def make_grid(name: str, header: nibabel.Nifti1Header, shape: tuple[int, int, int]) -> Grid:
    """The grid that a header describes.

    Args:
        name: how messages call the file.
        header: a NIfTI header.
        shape: the three axes of its volume; a picture of two axes has 1 as the last.
    """
    with np.errstate(all="ignore"):
        affine = np.array(header.get_best_affine(), np.float64)
    orientation = _orientation(affine)
    problem = _affine_problem(header, affine) if orientation is not None else UNUSABLE
    if orientation is None:
        affine, orientation = np.eye(4), _orientation(np.eye(4))
    elif len(header.get_data_shape()) == 2 and orientation[2, 0] != 2:
        problem, orientation = "says that the picture is not axial", _orientation(np.eye(4))
    unit_mm = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return Grid(name, shape, affine, orientation, problem, unit_mm)


def check_same_space(image: Grid, mask: Grid) -> None:
    """Checks that an image and its mask have one shape and, where both affines are sane, one position.

    Raises:
        DataError: the shapes differ, or a corner of the volume lies more than half a voxel apart.
    """
    if image.shape != mask.shape:
        raise DataError(
            f"{mask.name}: expected the shape of {image.name}, {by(image.shape)}, got {by(mask.shape)}"
        )
    if image.affine_problem or mask.affine_problem:
        return
    last = np.array(image.shape) - 1
    corners = np.array([[*(last * bits), 1] for bits in np.ndindex(2, 2, 2)]).T
    apart = np.linalg.norm(((image.affine - mask.affine) @ corners)[:3], axis=0).max()
    allowed = 0.5 * nibabel.affines.voxel_sizes(image.affine).min()
    if apart > allowed:
        raise DataError(
            f"{mask.name}: expected the affine of {image.name}, got one that puts a corner of the volume "
            f"{apart:.4g} mm away"
        )


def by(shape: tuple[int, ...]) -> str:
    """A shape as messages print it, `512 x 512 x 40`."""
    return " x ".join(str(n) for n in shape)


def _orientation(affine: np.ndarray) -> np.ndarray | None:
    """nibabel's orientation of the stored axes, or None where the affine cannot be inverted."""
    with np.errstate(all="ignore"):
        lengths = nibabel.affines.voxel_sizes(affine)
        volume = abs(np.linalg.det(affine[:3, :3]))
        # Twelve digits of float64's sixteen: below that two axes point the same way.
        if not (np.isfinite(affine).all() and np.isfinite(volume) and volume > 1e-12 * lengths.prod()):
            return None
    return nibabel.io_orientation(affine).astype(int)


def _affine_problem(header: nibabel.Nifti1Header, affine: np.ndarray) -> str | None:
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        return "is not set"
    spacing = np.abs(affine[:3, :3])
    # No scanner writes an exact 1 mm in-plane spacing together with an origin at exactly zero.
    if np.array_equal(spacing[:2, :2], np.eye(2)) and not affine[:3, 3].any():
        return "looks invented (1 x 1 mm pixels, origin 0)"
    return None
