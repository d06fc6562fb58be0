"""The header of a NIfTI file, read and checked before a byte of its voxels is, and the file's voxels in pieces."""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
from nibabel.imageglobals import logger as nibabel_log

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.grid import Grid, by, make_grid

SUFFIXES = (".nii.gz", ".nii")
MAX_BYTES = 8 * 1024**3
# Deflate cannot expand a byte to more than 1,032 bytes, so a header that claims more than that is wrong.
_MAX_GZIP_RATIO = 1032
# What may lie before the voxels (the header's extensions) and behind them; a gzip file hides how much there is.
_MAX_OTHER_BYTES = 64 * 1024**2
# Each kind of file: where its magic word stands, the word, and who reads it. `ni1` and `ni2` head pairs of files.
_KINDS = {
    348: (344, b"n+1\0", nibabel.Nifti1Header),
    540: (4, b"n+2\0", nibabel.Nifti2Header),
}


def nifti_stem(name: str) -> str | None:
    """Returns a file name without its NIfTI suffix, or None when it is hidden or not a NIfTI name."""
    if name.startswith("."):
        return None
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return None


@dataclass(frozen=True)
class NiftiFile:
    """A file whose header was checked: its voxels can be read in bounded memory.

    Attributes:
        path: the file.
        grid: its shape, position and orientation.
        header: as stored, what nibabel repairs repaired; no extensions.
        dtype: number type of the stored values, with their byte order.
        offset: bytes before the first voxel.
        slope, inter: a value is slope * stored + inter.
    """

    path: Path
    grid: Grid
    header: nibabel.Nifti1Header
    dtype: np.dtype
    offset: int
    slope: float
    inter: float

    @property
    def value_dtype(self) -> np.dtype:
        """Number type of the scaled values; integers stay integers where they can."""
        if self.slope == 1.0 and self.inter == 0.0:
            return self.dtype.newbyteorder("=")
        # float32 holds every 16-bit value times a slope to a relative 6e-8, far below a Hounsfield unit.
        small = self.dtype.itemsize <= 2 or self.dtype.newbyteorder("=") == np.float32
        return np.dtype(np.float32 if small else np.float64)

    def chunks(self, planes: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads the volume from its first byte to its last, a few planes of the last axis at a time.

        A gzip file is decompressed to its end, so its checksum is verified once all has been read.

        Args:
            planes: how many at a time, 1 or more.

        Returns:
            Pairs of the first plane's index and the scaled values [X, Y, up to `planes`].

        Raises:
            DataError: the file is truncated or damaged.
        """
        x, y, z = self.grid.shape
        plane = x * y * self.dtype.itemsize
        kind = self.value_dtype.type
        with _bad_data_told(self):
            stream = gzip.open(self.path, "rb") if _is_gzip(self.path) else open(self.path, "rb")
        with stream:
            with _bad_data_told(self):
                stream.seek(self.offset)
            for start in range(0, z, planes):
                count = min(planes, z - start)
                with _bad_data_told(self):
                    raw = _read_exactly(stream, count * plane)
                if len(raw) < count * plane:
                    raise DataError(
                        f"{self.grid.name}: expected {self._claim()}, got {start * plane + len(raw):,}: truncated"
                    )
                data = np.frombuffer(raw, self.dtype).reshape((x, y, count), order="F")
                if self.slope == 1.0 and self.inter == 0.0:
                    yield start, data.astype(self.value_dtype, copy=False)
                    continue
                # An overflow becomes an infinity, which whoever uses the values reports with the file's name.
                with np.errstate(over="ignore", invalid="ignore"):
                    scaled = data.astype(kind) * kind(self.slope) + kind(self.inter)
                yield start, scaled
            if _is_gzip(self.path):
                with _bad_data_told(self):
                    self._drain(stream)

    def _drain(self, stream: IO[bytes]) -> None:
        """Reads to the end, which makes gzip compare its checksum."""
        trailing = 0
        while chunk := stream.read(1 << 20):
            trailing += len(chunk)
            if trailing > _MAX_OTHER_BYTES:
                raise DataError(f"{self.grid.name}: expected {self._claim()}, got far more")

    def _claim(self) -> str:
        wanted = math.prod(self.grid.shape) * self.dtype.itemsize
        return f"{wanted:,} bytes of voxels (shape {by(self.grid.shape)})"


def open_nifti(path: str | os.PathLike, name: str | None = None) -> NiftiFile:
    """Reads and checks the header of a NIfTI file.

    Args:
        path: a `.nii` or `.nii.gz` file of three dimensions, of two (one axial slice), or with further axes of
            length 1.
        name: how messages call it; the path by default.

    Raises:
        DataError: the file is missing, unreadable, not NIfTI, not numeric, of another number of dimensions or
            without voxels, or its header claims more than the file can hold or than 8 GiB.
    """
    path = Path(path)
    name = name or str(path)
    if os.path.isdir(path):
        raise DataError(f"{name}: expected a NIfTI file, got a folder")
    if not os.path.isfile(path):
        raise DataError(f"{name}: expected a NIfTI file, found none")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{name}: expected a NIfTI file, got an empty one (0 bytes)")
    # nibabel raises whatever its parsers and the decompressor meet, so every exception is a bad file here.
    # It also logs each header field it repairs; what matters of that is checked here.
    level = nibabel_log.level
    nibabel_log.setLevel(logging.CRITICAL + 1)
    try:
        with np.errstate(all="ignore"):
            header = _parsed(path)
            stored_shape = tuple(int(n) for n in header.get_data_shape())
            dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
            slope, inter = header.get_slope_inter()
            header.get_best_affine()
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name}: expected a NIfTI file, its header cannot be read ({reason})") from None
    finally:
        nibabel_log.setLevel(level)
    shape = _checked_shape(stored_shape, dtype, offset, size, path, name)
    slope, inter = (1.0 if slope is None else slope), (0.0 if inter is None else inter)
    return NiftiFile(path, make_grid(name, header, shape), header, dtype, offset, slope, inter)


def _parsed(path: Path) -> nibabel.Nifti1Header:
    """The header, from its own bytes alone: nibabel would also read extensions of any length that it claims."""
    with gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb") as stream:
        raw = stream.read(max(_KINDS))
    for order in ("little", "big"):
        length = int.from_bytes(raw[:4], order)
        if length not in _KINDS or len(raw) < length:
            continue
        place, magic, kind = _KINDS[length]
        if raw[place : place + 4] != magic:
            raise ValueError("it does not start a single NIfTI file")
        # Told the byte order, because nibabel guesses it from the number of dimensions.
        header = kind(raw[:length], order)
        if not 1 <= header["dim"][0] <= 7:
            raise ValueError(f"it has {header['dim'][0]} dimensions")
        return header
    raise ValueError("it has no NIfTI header's length")


def _checked_shape(
    shape: tuple[int, ...], dtype: np.dtype, offset: int, size: int, path: Path, name: str
) -> tuple[int, int, int]:
    if dtype.kind not in "iuf":
        raise DataError(f"{name}: expected real numbers, got values of type {dtype}")
    if any(n < 1 for n in shape) or not shape:
        raise DataError(f"{name}: expected a volume with voxels, got shape {by(shape) or 'nothing'}")
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise DataError(f"{name}: expected three dimensions, got shape {by(shape)}")
    claimed = math.prod(shape) * dtype.itemsize
    most = size * (_MAX_GZIP_RATIO if _is_gzip(path) else 1)
    if not 0 <= offset <= min(most, _MAX_OTHER_BYTES):
        raise DataError(f"{name}: expected voxels inside the file, the header puts them at byte {offset}")
    if claimed > min(MAX_BYTES, most):
        raise DataError(
            f"{name}: expected at most {min(MAX_BYTES, most):,} bytes of voxels (the file has {size:,}, "
            f"the limit is 8 GiB), the header claims {claimed:,} (shape {by(shape)})"
        )
    return (*shape, 1)[:3]


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _read_exactly(stream: IO[bytes], wanted: int) -> bytearray:
    """`wanted` bytes, or fewer where the file ends."""
    raw = bytearray(wanted)
    got = 0
    while got < wanted and (step := stream.readinto(memoryview(raw)[got:])):
        got += step
    return raw if got == wanted else raw[:got]


@contextmanager
def _bad_data_told(file: NiftiFile) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise DataError(
            f"{file.grid.name}: expected {file._claim()}, the compressed data end early"
        ) from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{file.grid.name}: expected a readable file, got damaged data ({error})") from None
