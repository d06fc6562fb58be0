"""CT values to 0..255, and slices to the network's size."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.nifti import Volume

INTENSITIES = ("auto", "hu", "raw")
HU_MIN, HU_MAX = -1024.0, 600.0
# Torch converts this many slices at a time, which bounds the float32 copies.
_CHUNK = 32


def looks_like_hu(data: np.ndarray) -> bool:
    """Says whether values look like Hounsfield units: at least 1 % of all voxels lie below -200.

    Air and lung (-1000 to -500 HU) fill far more than that of any chest CT; grey values of pictures, values
    shifted to start at 0, and values scaled to a unit range or a unit variance have none.
    """
    return bool(np.count_nonzero(data < -200) >= 0.01 * data.size)


@dataclass(frozen=True)
class IntensityRange:
    """The values of a file that become 0 and 255, and what was seen in it.

    Attributes:
        low, high: become 0 and 255.
        smallest, largest: the extreme values of the file.
        remark: what the user must be told about the choice, without the numbers, or None.
    """

    low: float
    high: float
    smallest: float
    largest: float
    remark: str | None


def intensity_range(volume: Volume, intensity: str = "auto") -> IntensityRange:
    """Chooses the values of a whole file that become 0 and 255.

    Args:
        volume: the image file.
        intensity: `hu` takes the window -1024..600 HU of Budak et al. 2021; `raw` the file's own smallest
            and largest value; `auto` is `hu` for a file that `looks_like_hu`, else `raw` with a remark.

    Returns:
        The range.

    Raises:
        DataError: the file has values that are not finite.
    """
    data = volume.data
    smallest, largest = float(data.min()), float(data.max())
    # NaN passes through min and max; an infinity is one of them.
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        bad = int(data.size - np.count_nonzero(np.isfinite(data)))
        raise DataError(f"{volume.name}: expected finite values, got {bad} voxels that are NaN or infinite")
    hu = looks_like_hu(data)
    if intensity == "hu" or (intensity == "auto" and hu):
        remark = None if hu else "do not look like Hounsfield units; windowed as if they were"
        return IntensityRange(HU_MIN, HU_MAX, smallest, largest, remark)
    remark = "do not look like Hounsfield units; scaled by their own range" if intensity == "auto" else None
    return IntensityRange(smallest, largest, smallest, largest, remark)


def window(slices: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps values to 0..255: 255 (clip(x, low, high) - low) / (high - low).

    Args:
        slices: [n, rows, columns] of any real type.
        low: value that becomes 0.
        high: value that becomes 255; where it equals `low`, everything becomes 0.

    Returns:
        float32 [n, rows, columns], not rounded.
    """
    if not high > low:
        return np.zeros(slices.shape, np.float32)
    return (np.clip(slices.astype(np.float32), low, high) - np.float32(low)) * np.float32(
        255.0 / (high - low)
    )


def resize_images(slices: np.ndarray, size: int, low: float, high: float) -> np.ndarray:
    """Windows slices and resizes them, antialiased, to size x size.

    Args:
        slices: [n, rows, columns] CT values.
        size: side of the result in pixels.
        low, high: see `window`.

    Returns:
        uint8 [n, size, size], rounded to the nearest value.
    """
    out = np.empty((len(slices), size, size), np.uint8)
    for start in range(0, len(slices), _CHUNK):
        part = torch.from_numpy(np.ascontiguousarray(window(slices[start : start + _CHUNK], low, high)))
        part = F.interpolate(
            part[:, None], (size, size), mode="bilinear", align_corners=False, antialias=True
        )
        out[start : start + _CHUNK] = part[:, 0].round_().clamp_(0, 255).to(torch.uint8).numpy()
    return out


def resize_masks(slices: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resizes label slices by nearest neighbour (`nearest-exact`, pixel centres aligned).

    Args:
        slices: uint8 [n, rows, columns].
        size: side of the result in pixels, or (rows, columns).

    Returns:
        uint8 [n, rows, columns] of the new size.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if not len(slices):
        return np.empty((0, rows, columns), np.uint8)
    part = torch.from_numpy(np.ascontiguousarray(slices))[:, None]
    return F.interpolate(part, (rows, columns), mode="nearest-exact")[:, 0].numpy()
