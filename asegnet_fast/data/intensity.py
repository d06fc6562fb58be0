"""CT values to 0..255, and slices to the network's size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from asegnet_fast.data.errors import DataError

INTENSITIES = ("auto", "hu", "raw")
HU_MIN, HU_MAX = -1024.0, 600.0
# Torch converts this many slices at a time, which bounds the float32 copies.
_CHUNK = 32


@dataclass
class ValueStatistics:
    """What a file's values say about their unit, gathered in one pass.

    Attributes:
        smallest, largest: extremes of the finite values.
        voxels: how many values there were.
        not_finite: how many of them are NaN or infinite.
        below: how many of them lie below -200.
    """

    smallest: float = math.inf
    largest: float = -math.inf
    voxels: int = 0
    not_finite: int = 0
    below: int = 0

    def add(self, data: np.ndarray) -> ValueStatistics:
        """Takes in further values, at least one; returns itself."""
        smallest, largest = float(data.min()), float(data.max())
        # NaN passes through min and max; an infinity is one of them.
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            self.not_finite += int(data.size - np.count_nonzero(np.isfinite(data)))
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)
        self.voxels += data.size
        self.below += int(np.count_nonzero(data < -200))
        return self

    @property
    def looks_like_hu(self) -> bool:
        """Whether values look like Hounsfield units: at least 1 % of all voxels lie below -200.

        Air and lung (-1000 to -500 HU) fill far more than that of any chest CT; grey values of pictures, values
        shifted to start at 0, and values scaled to a unit range or a unit variance have none.
        """
        return self.below >= 0.01 * self.voxels


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


def intensity_range(values: ValueStatistics, name: str, intensity: str = "auto") -> IntensityRange:
    """Chooses the values of a whole file that become 0 and 255.

    Args:
        values: of all the file's voxels.
        name: how messages call the file.
        intensity: `hu` takes the window -1024..600 HU of Budak et al. 2021; `raw` the file's own smallest
            and largest value; `auto` is `hu` for a file that `looks_like_hu`, else `raw` with a remark.

    Returns:
        The range.

    Raises:
        DataError: the file has values that are not finite.
    """
    if values.not_finite:
        raise DataError(
            f"{name}: expected finite values, got {values.not_finite} voxels that are NaN or infinite"
        )
    smallest, largest = values.smallest, values.largest
    hu = values.looks_like_hu
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
