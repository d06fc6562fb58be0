"""Small CT sets for the data tests."""

from pathlib import Path

import nibabel
import numpy as np

# 0.8 mm pixels and an origin away from zero: an affine a scanner could have written.
SANE = np.array([[-0.8, 0, 0, 90.0], [0, -0.8, 0, 80.0], [0, 0, 5.0, -200.0], [0, 0, 0, 1]])


def write(
    path: Path, data: np.ndarray, affine: np.ndarray = SANE, slope: float = 1, inter: float = 0
) -> Path:
    """Writes stored values as they are; readers see slope * data + inter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, affine)
    if (slope, inter) != (1, 0):
        image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return path


def hu_volume(shape: tuple[int, int, int] = (40, 36, 6), seed: int = 0) -> np.ndarray:
    """int16 values from -1000 to 400 HU."""
    return np.random.default_rng(seed).integers(-1000, 400, shape, dtype=np.int16)


def blob_mask(
    shape: tuple[int, int, int] = (40, 36, 6), lesion_slices=(1, 2, 4), label: int = 1
) -> np.ndarray:
    """uint8 with a box of a label in some slices."""
    mask = np.zeros(shape, np.uint8)
    mask[10:20, 8:22, list(lesion_slices)] = label
    return mask


def write_set(root: Path, files: int = 3, **options) -> Path:
    """A set of images/ and masks/ with files case1.nii.gz, case2.nii.gz, ..."""
    for k in range(1, files + 1):
        write(root / "images" / f"case{k}.nii.gz", hu_volume(seed=k, **options))
        write(root / "masks" / f"case{k}.nii.gz", blob_mask(**options))
    return root
