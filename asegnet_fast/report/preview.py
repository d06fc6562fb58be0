"""The picture of a predicted volume: some of its slices with the labels in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from asegnet_fast.files import replacing
from asegnet_fast.report.colours import class_colour, rgb
from asegnet_fast.report.pictures import DPI

_COLUMNS = 4
_FILL = 0.275  # opacity inside a lesion
_SIDE = 2.6  # inches of a slice


class ShownSlice(Protocol):
    """A slice of the picture: uint8 image and classes [rows, columns], index in its file, lesion pixels."""

    image: np.ndarray
    labels: np.ndarray
    index: int
    area: int


def draw_preview(
    path: Path,
    slices: Sequence[ShownSlice],
    spacing: tuple[float, float],
    title: str,
    values: Sequence[int],
) -> None:
    """Draw slices as CT with the labels over them, seen from the feet: the patient's right is on the left.

    Args:
        path: the PNG.
        slices: at least one, of one size, in display orientation.
        spacing: millimetres between rows and between columns.
        title: over all of it.
        values: what stands for class 1, 2, ... in the mask; named where there are several.
    """
    columns = min(_COLUMNS, len(slices))
    rows = math.ceil(len(slices) / columns)
    height, width = (n * step for n, step in zip(slices[0].image.shape, spacing, strict=True))
    # However long and thin a slice is, the picture stays one.
    tall = _SIDE * min(2.0, max(0.5, height / width))
    figure = Figure(figsize=(_SIDE * columns, (tall + 0.3) * rows + 0.7), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, shown in zip(axes, slices, strict=False):
        extent = (0.0, width, height, 0.0)
        axis.imshow(_painted(shown.image, shown.labels), extent=extent, interpolation="nearest")
        axis.set_title(f"slice {shown.index}: {shown.area} pixels", fontsize=8)
    if len(values) > 1:
        handles = [Patch(color=class_colour(k), label=f"label {value}") for k, value in enumerate(values, 1)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _painted(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns, 3]: the CT, coloured inside a lesion, its edge in the full colour."""
    picture = np.repeat(image[..., None], 3, 2).astype(np.float32)
    inner = np.zeros(labels.shape, bool)
    inner[1:-1, 1:-1] = (
        (labels[1:-1, 1:-1] == labels[:-2, 1:-1])
        & (labels[1:-1, 1:-1] == labels[2:, 1:-1])
        & (labels[1:-1, 1:-1] == labels[1:-1, :-2])
        & (labels[1:-1, 1:-1] == labels[1:-1, 2:])
    )
    for label in np.unique(labels[labels > 0]):
        colour = np.array(rgb(class_colour(int(label))), np.float32)
        area = labels == label
        picture[area & inner] = (1 - _FILL) * picture[area & inner] + _FILL * colour
        picture[area & ~inner] = colour
    return np.rint(picture).astype(np.uint8)
