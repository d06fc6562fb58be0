"""Reading and writing NIfTI volumes as stacks of axial slices, with one clear error for every bad file."""

import gzip
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.imageglobals import logger as nibabel_log

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.files import replacing

SUFFIXES = (".nii.gz", ".nii")
MAX_BYTES = 8 * 1024**3
# Deflate cannot expand a byte to more than 1,032 bytes, so a header that claims more than that is wrong.
_MAX_GZIP_RATIO = 1032
_MAX_TRAILING_BYTES = 64 * 1024**2
_NO_AFFINE = "cannot be inverted"


def nifti_stem(name: str) -> str | None:
    """Returns a file name without its NIfTI suffix, or None when it is hidden or not a NIfTI name."""
    if name.startswith("."):
        return None
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return None


@dataclass(frozen=True)
class Volume:
    """A three-dimensional NIfTI file in memory.

    Attributes:
        name: how messages call the file.
        data: [X, Y, Z] as stored, scl_slope and scl_inter applied; integers stay integers where they can.
        affine: [4, 4] voxel index to millimetres (RAS+); the identity where the file's cannot be inverted.
        orientation: [3, 2] nibabel orientation of the stored axes.
        affine_problem: why the affine cannot be trusted, or None.
    """

    name: str
    data: np.ndarray
    affine: np.ndarray
    orientation: np.ndarray
    affine_problem: str | None

    @property
    def axial_axis(self) -> int:
        """The stored axis closest to head-foot; the last one where the affine says nothing."""
        return int(np.flatnonzero(self.orientation[:, 0] == 2)[0])

    def _display_order(self) -> tuple[tuple[int, int, int], tuple[bool, bool]]:
        """Stored axes in the order (slice, row, column), and whether rows and columns are reversed."""
        of = {int(target): axis for axis, target in enumerate(self.orientation[:, 0])}
        # Rows run to the back and columns to the patient's left; the stored axes may point either way.
        flip_rows = self.orientation[of[1], 1] > 0
        flip_columns = self.orientation[of[0], 1] > 0
        return (of[2], of[1], of[0]), (bool(flip_rows), bool(flip_columns))

    def to_slices(self, data: np.ndarray | None = None) -> np.ndarray:
        """Views the volume as axial slices [n, rows, columns] in radiological display orientation.

        Rows run from front to back and columns from the patient's right to left. Slices keep the stored
        order, so position k is index k of the file's axial axis.

        Args:
            data: another array of the stored shape to view in the same way; the volume's own by default.
        """
        order, (flip_rows, flip_columns) = self._display_order()
        view = np.transpose(self.data if data is None else data, order)
        return view[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def from_slices(self, slices: np.ndarray) -> np.ndarray:
        """Puts axial slices [n, rows, columns] back into the file's stored axes; undoes `to_slices`."""
        order, (flip_rows, flip_columns) = self._display_order()
        view = slices[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return np.ascontiguousarray(np.transpose(view, np.argsort(order)))


def read_volume(path: str | os.PathLike, name: str | None = None) -> Volume:
    """Reads a whole NIfTI file once.

    A gzip file is decompressed to its end, so its checksum is verified.

    Args:
        path: a `.nii` or `.nii.gz` file, three-dimensional or with further axes of length 1.
        name: how messages call it; the path by default.

    Returns:
        The volume, its values scaled by the header's scl_slope and scl_inter.

    Raises:
        DataError: the file is missing, unreadable, truncated, damaged, not NIfTI, not numeric, not
            three-dimensional, empty, or its header claims more than the file can hold or than 8 GiB.
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
    image = _open(path, name)
    # The proxy keeps what stands in the file; nibabel clears offset and scaling in the image's header.
    stored, affine = image.dataobj, np.array(image.affine, dtype=np.float64)
    shape = _checked_shape(stored, size, path, name)
    dtype = stored.dtype
    raw = _read_bytes(path, shape, dtype, stored.offset, name)
    data = np.frombuffer(raw, dtype).reshape(shape, order="F")
    data = _scaled(data.astype(dtype.newbyteorder("="), copy=False), stored.slope, stored.inter)
    problem = _affine_problem(image.header, affine)
    if problem == _NO_AFFINE:
        affine = np.eye(4)
    return Volume(name, data, affine, nibabel.io_orientation(affine).astype(int), problem)


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


def check_same_space(image: Volume, mask: Volume) -> None:
    """Checks that an image and its mask have one shape and, where both affines are sane, one position.

    Raises:
        DataError: the shapes differ, or a corner of the volume lies more than half a voxel apart.
    """
    if image.data.shape != mask.data.shape:
        raise DataError(
            f"{mask.name}: expected the shape of {image.name}, {_by(image.data.shape)}, "
            f"got {_by(mask.data.shape)}"
        )
    if image.affine_problem or mask.affine_problem:
        return
    last = np.array(image.data.shape) - 1
    corners = np.array([[*(last * bits), 1] for bits in np.ndindex(2, 2, 2)]).T
    apart = np.linalg.norm(((image.affine - mask.affine) @ corners)[:3], axis=0).max()
    allowed = 0.5 * nibabel.affines.voxel_sizes(image.affine).min()
    if apart > allowed:
        raise DataError(
            f"{mask.name}: expected the affine of {image.name}, got one that puts a corner of the volume "
            f"{apart:.4g} mm away"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path, name: str) -> nibabel.Nifti1Pair:
    # nibabel raises whatever its parsers and the decompressor meet, so every exception is a bad file here.
    # It also logs each header field it repairs; what matters of that is checked here.
    level = nibabel_log.level
    nibabel_log.setLevel(logging.CRITICAL + 1)
    try:
        image = nibabel.load(path, mmap=False)
    except Exception as error:
        raise DataError(f"{name}: expected a NIfTI file, its header cannot be read ({error})") from None
    finally:
        nibabel_log.setLevel(level)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise DataError(f"{name}: expected a NIfTI file, got {type(image).__name__}")
    return image


def _checked_shape(stored, size: int, path: Path, name: str) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in stored.shape)
    if stored.dtype.kind not in "iuf":
        raise DataError(f"{name}: expected real numbers, got values of type {stored.dtype}")
    if any(n < 1 for n in shape) or not shape:
        raise DataError(f"{name}: expected a volume with voxels, got shape {_by(shape) or 'nothing'}")
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise DataError(f"{name}: expected three dimensions, got shape {_by(shape)}")
    claimed = math.prod(shape) * stored.dtype.itemsize
    most = size * (_MAX_GZIP_RATIO if _is_gzip(path) else 1)
    if not 0 <= stored.offset <= most:
        raise DataError(
            f"{name}: expected voxels inside the file, the header puts them at byte {stored.offset}"
        )
    if claimed > min(MAX_BYTES, most):
        raise DataError(
            f"{name}: expected at most {min(MAX_BYTES, most):,} bytes of voxels (the file has {size:,}, "
            f"the limit is 8 GiB), the header claims {claimed:,} (shape {_by(shape)})"
        )
    return shape[:3]


def _read_bytes(path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int, name: str) -> bytearray:
    wanted = math.prod(shape) * dtype.itemsize
    raw = bytearray(wanted)
    try:
        with gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb") as file:
            file.seek(offset)
            got = file.readinto(raw)
            while 0 < got < wanted:
                step = file.readinto(memoryview(raw)[got:])
                if not step:
                    break
                got += step
            # Reading on to the end makes gzip compare its checksum.
            trailing = 0
            while _is_gzip(path) and (chunk := file.read(1 << 20)):
                trailing += len(chunk)
                if trailing > _MAX_TRAILING_BYTES:
                    raise DataError(f"{name}: expected {wanted:,} bytes of voxels, got far more")
    except EOFError:
        raise DataError(
            f"{name}: expected {wanted:,} bytes of voxels (shape {_by(shape)}), the compressed data end early"
        ) from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{name}: expected a readable file, got damaged data ({error})") from None
    if got < wanted:
        raise DataError(
            f"{name}: expected {wanted:,} bytes of voxels (shape {_by(shape)}), got {got:,}: truncated"
        )
    return raw


def _scaled(data: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if slope == 1.0 and inter == 0.0:
        return data
    # float32 holds every 16-bit value times a slope to a relative 6e-8, far below a Hounsfield unit.
    kind = np.float32 if data.dtype.itemsize <= 2 or data.dtype == np.float32 else np.float64
    # An overflow becomes an infinity, which whoever uses the values reports with the file's name.
    with np.errstate(over="ignore", invalid="ignore"):
        return data.astype(kind) * kind(slope) + kind(inter)


def _affine_problem(header, affine: np.ndarray) -> str | None:
    # io_orientation marks axes that the affine gives no direction with NaN.
    if not np.isfinite(affine).all() or np.isnan(nibabel.io_orientation(affine)).any():
        return _NO_AFFINE
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        return "is not set"
    spacing = np.abs(affine[:3, :3])
    # No scanner writes an exact 1 mm in-plane spacing together with an origin at exactly zero.
    if np.array_equal(spacing[:2, :2], np.eye(2)) and not affine[:3, 3].any():
        return "looks invented (1 x 1 mm pixels, origin 0)"
    return None
