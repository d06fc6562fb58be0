"""Reading and writing whole NIfTI volumes, with one clear error for every bad file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.files import replacing
from asegnet_fast.data.grid import Grid
from asegnet_fast.data.header import open_nifti

_CHUNK_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Volume(Grid):
    """A NIfTI file in memory.

    Attributes:
        data: [X, Y, Z] as stored, scl_slope and scl_inter applied; integers stay integers where they can.
    """

    data: np.ndarray

    def to_slices(self, data: np.ndarray | None = None) -> np.ndarray:
        """`Grid.to_slices` of an array of the stored shape; of the volume's own by default."""
        return super().to_slices(self.data if data is None else data)


def read_volume(path: str | os.PathLike, name: str | None = None) -> Volume:
    """Reads a whole NIfTI file once.

    A gzip file is decompressed to its end, so its checksum is verified.

    Args:
        path: see `header.open_nifti`.
        name: how messages call it; the path by default.

    Returns:
        The volume, its values scaled by the header's scl_slope and scl_inter.

    Raises:
        DataError: as `header.open_nifti`, or the file is truncated or damaged.
    """
    file = open_nifti(path, name)
    grid = file.grid
    data = np.empty(grid.shape, file.value_dtype, order="F")
    plane = grid.shape[0] * grid.shape[1] * file.dtype.itemsize
    for start, part in file.chunks(max(1, _CHUNK_BYTES // plane)):
        data[:, :, start : start + part.shape[2]] = part
    return Volume(**vars(grid), data=data)


def write_volume(path: str | os.PathLike, data: np.ndarray, affine: np.ndarray) -> None:
    """Writes a NIfTI file under a temporary name and renames it, so a broken file is never left behind.

    Args:
        path: where to; `.nii.gz` or `.nii`.
        data: [X, Y, Z] of a NIfTI number type.
        affine: [4, 4] voxel index to millimetres.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: expected a folder to write to, got {error.strerror}") from None
    with replacing(path) as temporary:
        nibabel.save(image, temporary)
