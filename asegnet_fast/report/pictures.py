"""A CT slice as a picture: plain, with coloured areas, or with a map over it. Arrays in, arrays or PNG out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from asegnet_fast.report.colours import rgb

DPI = 130
FILL = 0.45  # opacity of a coloured area over the CT
HEAT = 0.6  # opacity of a map over the CT


def paint(image: np.ndarray, areas: Sequence[tuple[np.ndarray, str]], side: int) -> np.ndarray:
    """A slice with areas filled and outlined in their colours.

    Args:
        image: uint8 [S, S].
        areas: (bool [S, S], `#rrggbb`) each; later ones lie above.
        side: wanted side of the picture in pixels.

    Returns:
        uint8 [side, side, 3].
    """
    factor = max(1, side // len(image))
    picture = np.repeat(_enlarged(image, factor)[..., None], 3, 2).astype(np.float32)
    for area, colour in areas:
        inside = _enlarged(area, factor)
        picture[inside] = (1 - FILL) * picture[inside] + FILL * np.array(rgb(colour))
        picture[_outline(inside)] = rgb(colour)
    return _resized(picture.round().astype(np.uint8), side)


def heat(image: np.ndarray, values: np.ndarray, side: int) -> np.ndarray:
    """A slice under a map in 0..1, coloured from dark violet (0) to yellow (1).

    Args:
        image: uint8 [S, S].
        values: float [h, w], coarser than the slice or of its size.
        side: wanted side of the picture in pixels.

    Returns:
        uint8 [side, side, 3].
    """
    picture = _resized(np.repeat(image[..., None], 3, 2), side)
    colours = _resized((255 * colour_map(values)).round().astype(np.uint8), side, smooth=False)
    return ((1 - HEAT) * picture + HEAT * colours).round().astype(np.uint8)


def colour_map(values: np.ndarray) -> np.ndarray:
    """Numbers in 0..1 as colours [..., 3] in 0..1 of matplotlib's viridis."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.clip(values, 0, 1))[..., :3]


def png(picture: np.ndarray) -> bytes:
    """A picture uint8 [h, w, 3] as PNG with 256 colours of its own, a third of the full one's bytes."""
    from PIL import Image

    stream = io.BytesIO()
    image = Image.fromarray(picture).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _enlarged(array: np.ndarray, factor: int) -> np.ndarray:
    return array.repeat(factor, 0).repeat(factor, 1)


def _outline(area: np.ndarray) -> np.ndarray:
    """The pixels of an area that touch what is not of it; the picture's edge does not count."""
    padded = np.pad(area, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area & ~inner


def _resized(picture: np.ndarray, side: int, smooth: bool = True) -> np.ndarray:
    from PIL import Image

    if picture.shape[:2] == (side, side):
        return picture
    way = Image.Resampling.LANCZOS if smooth and len(picture) > side else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((side, side), way))
