"""Damaged NIfTI files through every reader: each must end in the project's own one-line error or in right values.

    python -m tests.fuzz_nifti --files 10000 --seed 1

Files start from valid ones (number types, byte orders, NIfTI-1 and -2, orientations, two to four dimensions, gzip or
not); then their header, voxels, length or compression is spoiled. Accepted ones must have nibabel's values and come
back from a mask on their grid with nibabel's affine. `--seed S --only I` makes that one file again.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from nibabel.imageglobals import logger as nibabel_log

from asegnet_fast.data import DataError, load_image, load_slices, open_nifti, read_slices, write_slices
from tests.data_sets import SANE

#: Seconds after which a file counts as hanging.
PATIENCE = 30
#: Bytes of address space that reading a file of a few kilobytes may take beside what the process has.
MEMORY = 512 * 1024**2

SHAPE = (12, 10, 4)
# Offset, struct format and name of the fields worth spoiling on purpose, in NIfTI-1 and in NIfTI-2.
FIELDS = {
    348: {
        "sizeof_hdr": (0, "i"), "dim0": (40, "h"), "dim1": (42, "h"), "dim2": (44, "h"), "dim3": (46, "h"),
        "dim4": (48, "h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim0": (76, "f"), "pixdim1": (80, "f"),
        "pixdim3": (88, "f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
        "xyzt_units": (123, "b"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern_b": (256, "f"),
        "qoffset_x": (268, "f"), "srow_x0": (280, "f"), "srow_y1": (300, "f"), "srow_z2": (320, "f"),
        "magic": (344, "i"), "glmin": (144, "i"),
    },
    540: {
        "sizeof_hdr": (0, "i"), "magic": (4, "i"), "datatype": (12, "h"), "bitpix": (14, "h"), "dim0": (16, "q"),
        "dim1": (24, "q"), "dim2": (32, "q"), "dim3": (40, "q"), "dim4": (48, "q"), "pixdim0": (104, "d"),
        "pixdim1": (112, "d"), "pixdim3": (128, "d"), "vox_offset": (168, "q"), "scl_slope": (176, "d"),
        "scl_inter": (184, "d"), "qform_code": (344, "i"), "sform_code": (348, "i"), "quatern_b": (352, "d"),
        "qoffset_x": (376, "d"), "srow_x0": (400, "d"), "srow_y1": (440, "d"), "srow_z2": (480, "d"),
        "xyzt_units": (500, "i"),
    },
}  # fmt: skip
WHOLE = (0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 256, 512, 768, 1024, 1536, 1792, 2048, 2304, 30000, 2**15 - 1)
REAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-30,
    1e30,
    3e38,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
    352.0,
    1e9,
    1e18,
)


def valid_files() -> list[bytes]:
    """Uncompressed NIfTI files of many kinds."""
    rng = np.random.default_rng(0)
    values = rng.integers(-1000, 400, SHAPE)
    files = []
    for dtype in (np.int16, np.uint8, np.float32, np.float64, np.int64, ">i2", ">f4"):
        files.append((nibabel.Nifti1Image, values.astype(dtype), SANE))
    files.append((nibabel.Nifti2Image, values.astype(np.int16), SANE))
    files.append((nibabel.Nifti2Image, values.astype(">f8"), SANE))
    files.append((nibabel.Nifti1Image, values[:, :, 0].astype(np.int16), SANE))
    files.append((nibabel.Nifti1Image, values[..., None].astype(np.int16), SANE))
    for order in ([2, 0, 1, 3], [1, 2, 0, 3]):
        files.append((nibabel.Nifti1Image, values.astype(np.int16), SANE[:, order]))
    raw = []
    for kind, data, affine in files:
        header = kind.header_class(endianness=">" if data.dtype.byteorder == ">" else "<")
        image = kind(data, affine, header)
        if data.dtype == np.uint8:
            image.header.set_slope_inter(4.0, -1000.0)
        raw.append(image.to_bytes())
    return raw


# ---- how a file is spoiled: uncompressed bytes -> bytes of a file, and whether those are gzip ------------


def header_bytes(raw: bytearray, r: random.Random) -> None:
    """A few bytes of the header become others."""
    for _ in range(r.randint(1, 6)):
        raw[r.randrange(min(len(raw), 352))] = r.randrange(256)


def header_fields(raw: bytearray, r: random.Random) -> None:
    """One to three fields get a number that is legal, extreme or senseless."""
    fields = FIELDS.get(int.from_bytes(raw[:4], "little")) or FIELDS.get(int.from_bytes(raw[:4], "big"))
    if fields is None:
        return
    order = "<" if int.from_bytes(raw[:4], "little") in FIELDS else ">"
    for _ in range(r.randint(1, 3)):
        offset, form = fields[r.choice(list(fields))]
        bits = 8 * struct.calcsize(form)
        if form in "fd":
            value = r.choice(REAL)
        else:
            value = r.choice((*WHOLE, *(-w for w in WHOLE), 2 ** (bits - 1) - 1, -(2 ** (bits - 1))))
            value = max(-(2 ** (bits - 1)), min(value, 2 ** (bits - 1) - 1))
        struct.pack_into(order + form, raw, offset, value)


def huge_shape(raw: bytearray, r: random.Random) -> None:
    """The header claims gigabytes."""
    order = "<" if int.from_bytes(raw[:4], "little") in FIELDS else ">"
    if int.from_bytes(raw[:4], "little" if order == "<" else "big") == 348:
        struct.pack_into(f"{order}4h", raw, 40, 3, *(r.choice((500, 2000, 30000, 32767)) for _ in range(3)))
    else:
        sides = (r.choice((1000, 2**20, 2**31, 2**40, 2**62)) for _ in range(3))
        struct.pack_into(f"{order}4q", raw, 16, 3, *sides)


def voxels(raw: bytearray, r: random.Random) -> None:
    """NaN, infinities and other bit patterns among the voxels."""
    for _ in range(r.randint(1, 5)):
        at = r.randrange(352, len(raw) - 8)
        raw[at : at + 8] = struct.pack("<d", r.choice(REAL)) if r.random() < 0.5 else r.randbytes(8)


def extension(raw: bytearray, r: random.Random) -> None:
    """An extension whose length is right, wrong, negative or enormous lies before the voxels."""
    start = 348 if int.from_bytes(raw[:4], "little") == 348 or int.from_bytes(raw[:4], "big") == 348 else 540
    esize = r.choice((0, 8, 16, 32, 15, -16, 2**31 - 1, -(2**31), 1024, 2**30))
    raw[start : start + 4] = b"\1\0\0\0"
    raw[start + 4 : start + 4] = struct.pack("<2i", esize, r.randrange(50)) + bytes(r.choice((0, 8, 24)))


def length(raw: bytearray, r: random.Random) -> None:
    """The file ends early or goes on."""
    if r.random() < 0.8:
        del raw[r.randrange(len(raw)) :]
    else:
        raw += r.randbytes(r.choice((1, 100, 5000)))


def noise(raw: bytearray, r: random.Random) -> None:
    """No NIfTI at all."""
    raw[:] = r.choice((b"", b"\0" * 400, r.randbytes(400), b"not a volume\n" * 40, bytes(raw[300:])))


def nothing(raw: bytearray, r: random.Random) -> None:
    """The file stays as it is (its compression may not)."""


DAMAGES: dict[Callable[[bytearray, random.Random], None], int] = {
    header_bytes: 8, header_fields: 12, huge_shape: 2, voxels: 3, extension: 2, length: 4, noise: 1, nothing: 3,
}  # fmt: skip


def compressed(raw: bytes, r: random.Random) -> bytes:
    """A gzip file, whole or damaged."""
    kind = r.choices(("whole", "cut", "bytes", "tail", "two", "bomb", "lie"), (10, 3, 4, 2, 1, 0.15, 1))[0]
    if kind == "bomb":  # far more behind the voxels than the header says
        raw = raw + bytes(80 * 1024**2)
    if kind == "lie":  # a few bytes that say they are gigabytes
        raw = bytearray(raw)
        if len(raw) > 400:
            huge_shape(raw, r)
    file = bytearray(gzip.compress(bytes(raw), 6, mtime=0))
    if kind == "cut":
        del file[r.randrange(len(file)) :]
    elif kind == "bytes":
        for _ in range(r.randint(1, 4)):
            file[r.randrange(len(file))] = r.randrange(256)
    elif kind == "tail":
        file += r.choice((b"\0" * 16, r.randbytes(30), file[:20]))
    elif kind == "two":
        file += gzip.compress(bytes(1000))
    return bytes(file)


def spoiled(index: int, seed: int, valid: list[bytes]) -> tuple[str, bytes, str]:
    """One damaged file: its name, its bytes and what was done to it."""
    r = random.Random(f"{seed} {index}")
    raw = bytearray(r.choice(valid))
    damages = r.choices(list(DAMAGES), list(DAMAGES.values()), k=r.choice((1, 1, 2)))
    for damage in damages:
        if len(raw) > 400:
            damage(raw, r)
    said = "+".join(damage.__name__ for damage in damages)
    if r.random() < 0.5:
        return "case.nii", bytes(raw), said
    return "case.nii.gz", compressed(bytes(raw), r), said + ", gzip"


# ---- what happens to it -------------------------------------------------------------------------------


def read_all(path: Path, folder: Path) -> np.ndarray:
    """Through the slice-wise reader and writer; the values in the stored axes."""
    file = open_nifti(path)
    out = folder / "mask.nii.gz"
    parts = []
    with write_slices(out, file, np.uint8, "fuzz") as writer:
        for part in read_slices(file, 3, folder):
            parts.append(part)
            with np.errstate(invalid="ignore"):
                writer.write((part > 0).astype(np.uint8))
    values = file.grid.from_slices(np.concatenate(parts))
    mask = nibabel.load(out)
    assert np.array_equal(np.asarray(mask.dataobj).reshape(values.shape), values > 0), (
        "the mask has other values"
    )
    assert np.array_equal(mask.affine, file.header.get_best_affine(), equal_nan=True), (
        "the mask has another affine"
    )
    return values


def check_values(path: Path, values: np.ndarray) -> None:
    """What nibabel reads too must be the same."""
    try:
        expected = np.asarray(nibabel.load(path).dataobj).reshape(values.shape)
    except Exception:
        return  # it also reads extensions, and reads no further than the voxels
    # What overflows float32 is NaN or infinite with us, and refused as such when it is used.
    finite = np.isfinite(values)
    with np.errstate(all="ignore"):
        assert np.allclose(values[finite], expected[finite], rtol=1e-5, atol=1e-3), (
            "other values than nibabel's"
        )


def judge(path: Path, folder: Path) -> str:
    """Reads the file in every way; says whether it was refused or read.

    Raises:
        Exception: whatever is not the project's own one-line error that names the file.
    """

    def attempt(reader: Callable[[], object]) -> object | None:
        try:
            return reader()
        except DataError as error:
            named = path.name in str(error) or str(folder / "set") in str(error)
            assert named and "\n" not in str(error), f"a complaint that names no file: {error}"
            return None

    values = attempt(lambda: read_all(path, folder))
    if values is not None:
        check_values(path, values)
    loaded = attempt(lambda: load_image(path, size=8))
    assert values is not None or loaded is None, "the whole-file reader took what the slice-wise one refused"
    if values is not None and np.isfinite(values).all():
        assert loaded is not None, "the slice-wise reader took what the whole-file one refused"
    (folder / "set" / "masks").mkdir(parents=True, exist_ok=True)
    (folder / "set" / "images").mkdir(exist_ok=True)
    for role in ("images", "masks"):
        for other in (folder / "set").rglob("case.*"):
            other.unlink()
        for name in ("images", "masks"):
            target = folder / "set" / name / (path.name if name == role else "case.nii")
            target.write_bytes(
                path.read_bytes() if name == role else GOOD_MASK if name == "masks" else GOOD_IMAGE
            )
        attempt(lambda: load_slices(folder / "set", size=8))
    return "refused" if values is None else "read"


def _bytes_of(values: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(values, SANE).to_bytes()


GOOD_IMAGE = _bytes_of(np.arange(480, dtype=np.int16).reshape(SHAPE) - 300)
GOOD_MASK = _bytes_of((np.arange(480).reshape(SHAPE) % 3 == 0).astype(np.uint8))


@contextmanager
def bounded() -> Iterator[None]:
    """At most `MEMORY` more address space and `PATIENCE` seconds; a file that wants more fails."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took more than {PATIENCE} s")


def run(files: int, seed: int, only: int | None = None) -> tuple[Counter, list[str]]:
    """Makes and reads the files; returns how many were refused and read by damage, and what went wrong."""
    counts: Counter = Counter()
    complaints = []
    valid = valid_files()
    nibabel_log.setLevel(logging.CRITICAL)  # it tells of every field that it repairs
    with tempfile.TemporaryDirectory(prefix="asegnet-fast-fuzz-") as name:
        folder = Path(name)
        for index in range(files) if only is None else [only]:
            file_name, raw, said = spoiled(index, seed, valid)
            path = folder / file_name
            path.write_bytes(raw)
            try:
                with bounded():
                    counts[said.split("+")[0].split(",")[0], judge(path, folder)] += 1
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                complaints.append(
                    f"--seed {seed} --only {index} ({said}): {type(error).__name__}: {str(error)[:200]} ({where})"
                )
                if only is not None:
                    traceback.print_exc()
            path.unlink()
    return counts, complaints


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="make this one file again")
    arguments = parser.parse_args()
    counts, complaints = run(arguments.files, arguments.seed, arguments.only)
    for (damage, verdict), count in sorted(counts.items()):
        print(f"{damage:<16}{verdict:<9}{count}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{sum(counts.values())} files without a complaint, {len(complaints)} with; peak memory {peak:.0f} MiB"
    )
    for line in complaints:
        print(line)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
