"""Volumes read and written a few axial slices at a time, whatever the order of their stored axes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.grid import Grid
from asegnet_fast.data.header import NiftiFile
from asegnet_fast.files import replacing

# No CT has more pixels in a plane; a header that claims more would make one slice fill the memory.
MAX_PLANE = 4096**2
# Planes of the last axis that are turned at a time; more would take more memory, fewer more steps on the disk.
_PLANES = 16
# Masks are nearly as small at level 1 as at 9, and noise in a map of numbers does not shrink at any.
_GZIP_LEVEL = 1


class _Turned:
    """Axial slices on disk, for a file whose last axis is not the axial one.

    The file's own order is plane by plane of its last axis, the network's is slice by slice, and a gzip file can be
    neither read nor written in any other order than its own. The temporary file has no name: however the program
    ends, nothing stays.

    Args:
        grid: the volume's.
        dtype: of its values.
        folder: where the temporary file lies.
    """

    def __init__(self, grid: Grid, dtype: np.dtype, folder: Path) -> None:
        self.axis = grid.axial_axis
        self.dtype = np.dtype(dtype)
        self.slices, self.others, self.planes = (
            grid.shape[self.axis],
            grid.shape[1 - self.axis],
            grid.shape[2],
        )
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)

    def _seek(self, slice_index: int, plane: int) -> None:
        self.file.seek((slice_index * self.planes + plane) * self.others * self.dtype.itemsize)

    def put_planes(self, first: int, data: np.ndarray) -> None:
        """Takes planes [X, Y, k] of the last axis."""
        data = np.moveaxis(data, self.axis, 0).swapaxes(1, 2)
        for index, part in enumerate(data):
            self._seek(index, first)
            self.file.write(np.ascontiguousarray(part, self.dtype))

    def take_planes(self, first: int, count: int) -> np.ndarray:
        """Planes [X, Y, count] of the last axis."""
        data = np.empty((self.slices, count, self.others), self.dtype)
        for index, part in enumerate(data):
            self._seek(index, first)
            self.file.readinto(part)
        return np.moveaxis(data.swapaxes(1, 2), 0, self.axis)

    def put_slices(self, first: int, data: np.ndarray) -> None:
        """Takes axial slices in the stored axes: [X, Y, Z], the axial one cut to k."""
        self._seek(first, 0)
        self.file.write(np.ascontiguousarray(np.moveaxis(data, self.axis, 0).swapaxes(1, 2), self.dtype))

    def take_slices(self, first: int, count: int) -> np.ndarray:
        """Axial slices in the stored axes: [X, Y, Z], the axial one cut to `count`."""
        data = np.empty((count, self.planes, self.others), self.dtype)
        self._seek(first, 0)
        self.file.readinto(data)
        return np.moveaxis(data.swapaxes(1, 2), 0, self.axis)


def read_slices(file: NiftiFile, count: int, folder: Path) -> Iterator[np.ndarray]:
    """Reads a volume as axial slices in order, a few at a time.

    Args:
        file: the volume.
        count: how many slices at a time, 1 or more.
        folder: where a temporary file of the volume's size may lie, if its last axis is not the axial one.

    Returns:
        Arrays [up to `count`, rows, columns] as `Grid.to_slices`.

    Raises:
        DataError: the file is truncated or damaged, or its planes are too large.
    """
    grid = file.grid
    n, rows, columns = grid.slices_shape
    if max(rows * columns, grid.shape[0] * grid.shape[1]) > MAX_PLANE:
        raise DataError(
            f"{grid.name}: expected slices of at most {MAX_PLANE:,} pixels, got {rows} x {columns}"
        )
    if grid.axial_axis == 2:
        for _, part in file.chunks(count):
            yield grid.to_slices(part)
        return
    turned = _Turned(grid, file.value_dtype, folder)
    with turned.file:
        for first, part in file.chunks(_PLANES):
            turned.put_planes(first, part)
        for first in range(0, n, count):
            yield grid.to_slices(turned.take_slices(first, min(count, n - first)))


class SliceWriter:
    """Takes the axial slices of a volume in order and writes them as NIfTI on its grid; made by `write_slices`.

    Attributes:
        sha256: of the file, once it is whole.
    """

    def __init__(self, like: NiftiFile, dtype: np.dtype, voxels: IO[bytes], folder: Path) -> None:
        self.sha256 = ""
        self._grid, self._dtype, self._voxels = like.grid, np.dtype(dtype), voxels
        self._next = 0
        self._turned = _Turned(like.grid, dtype, folder) if like.grid.axial_axis != 2 else None

    def write(self, slices: np.ndarray) -> None:
        """Takes the next slices [k, rows, columns]."""
        data = self._grid.from_slices(slices)
        if self._turned is None:
            self._put(data)
        else:
            self._turned.put_slices(self._next, data)
        self._next += len(slices)

    def _put(self, planes: np.ndarray) -> None:
        self._voxels.write(np.asarray(planes, self._dtype).tobytes(order="F"))

    def _finish(self) -> None:
        n = self._grid.slices_shape[0]
        assert self._next == n, f"{self._next} of {n} slices were written"
        if self._turned is not None:
            planes = self._grid.shape[2]
            for first in range(0, planes, _PLANES):
                self._put(self._turned.take_planes(first, min(_PLANES, planes - first)))


@contextlib.contextmanager
def write_slices(path: Path, like: NiftiFile, dtype: np.dtype, description: str) -> Iterator[SliceWriter]:
    """Opens a NIfTI file on another one's grid for slices that come in order.

    Shape, affine, zooms, units, sform and qform with their codes are the other file's, bit for bit; what describes its
    values or its patient is not taken over. The same slices make the same bytes.

    Args:
        path: `.nii.gz` or `.nii`; whole when the block ends well, else what lay there before stays.
        like: the file whose grid it is.
        dtype: number type of the values.
        description: up to 79 characters for the header.

    Returns:
        A context manager over the writer, which must get every slice.
    """
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replacing(path))
        raw = _Hashed(stack.enter_context(open(temporary, "wb")))
        voxels: IO[bytes] = raw
        if path.name.lower().endswith(".gz"):
            # No name and no time in it.
            voxels = stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0))
        _header(like, dtype, description).write_to(voxels)
        writer = SliceWriter(like, dtype, voxels, temporary.parent)
        if writer._turned is not None:
            stack.enter_context(writer._turned.file)
        yield writer
        writer._finish()
        if voxels is not raw:
            voxels.close()
        writer.sha256 = raw.digest.hexdigest()


def _header(like: NiftiFile, dtype: np.dtype, description: str):
    """The header of a file on another one's grid."""
    header = like.header.as_byteswapped(sys.byteorder)
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name in ("cal_max", "cal_min", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[name] = 0
    for name in {"intent_name", "aux_file", "db_name"} & set(header.keys()):
        header[name] = b""
    header["descrip"] = description.encode()
    header["vox_offset"] = header.single_vox_offset
    return header


class _Hashed:
    """Passes bytes on to a file and takes their sha256."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
