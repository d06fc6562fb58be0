"""Rows of CT pictures with captions: data samples, the qualitative comparison, attention maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.report import colours
from asegnet_fast.report.cases import Cases, lesion_share, slice_name
from asegnet_fast.report.pictures import DPI, colour_map, heat, paint
from asegnet_fast.report.table import MODEL_NAMES, loss_label, row_label

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet

#: All pictures of one figure have at most this many pixels, which keeps a page with them to a few megabytes.
PIXELS = 1_800_000
SIDES = (256, 192, 160, 128, 96)
MAX_PANELS = PIXELS // SIDES[-1] ** 2
MAX_COLUMNS = 8


@dataclass(frozen=True)
class Panel:
    """One picture, uint8 [h, w, 3], with what stands under it and what it shows in words."""

    picture: np.ndarray
    caption: tuple[str, ...]
    alt: str


@dataclass(frozen=True)
class Strip:
    """Pictures that belong side by side."""

    title: str
    panels: list[Panel]


@dataclass(frozen=True)
class Strips:
    """A figure of CT pictures.

    legend: (`#rrggbb`, meaning) of the coloured areas. scale: whether it shows maps in 0..1. left_out: rows for
    which there was no room.
    """

    strips: list[Strip]
    legend: list[tuple[str, str]]
    scale: bool = False
    left_out: int = 0


def data_samples(slices: SliceSet, chosen: Sequence[int], labels: np.ndarray | None = None) -> Strips:
    """Slices as CT and, beneath, with their labels in colour (as the paper's Fig. 3).

    Args:
        slices: the data.
        chosen: indices of the slices.
        labels: the files' own labels [len(chosen), S, S] where the run merged them; None: those of the run.
    """
    side = _side(2 * len(chosen))
    values = slices.label_values
    if labels is None:
        labels = slices.masks[chosen]
        values = tuple(range(1, slices.num_classes))
    names = {place + 1: f"label {value}" for place, value in enumerate(slices.label_values)}
    if len(values) == 1:
        names = {1: "lesion"}
    panels = []
    for index, mask in zip((int(i) for i in chosen), labels, strict=True):
        coded = np.searchsorted(np.array([0, *values]), mask)
        picture = np.concatenate(
            [paint(slices.images[index], [], side), paint(slices.images[index], _classes(coded), side)]
        )
        share = f"lesion {100 * lesion_share(slices, index):.1f} %"
        there = ", ".join(names[int(label)] for label in np.unique(coded[coded > 0])) or "none"
        alt = f"CT of {slice_name(slices, index)}, and beneath it the same with its labels in colour ({there}); {share}"
        panels.append(Panel(picture, (slice_name(slices, index), share), alt))
    return Strips(
        [Strip("CT, and with its labels", panels)], [(colours.class_colour(k), n) for k, n in names.items()]
    )


def qualitative(rows: list[dict[str, Any]], slices: SliceSet, cases: Cases) -> Strips:
    """Each chosen slice with the ground truth, then each row's prediction (as the paper's Fig. 4).

    Each slice is predicted by the fold that did not train on it. With one lesion class, colours tell what was
    hit, falsely marked and missed; with several, they are the classes.
    """
    rows = [row for row in rows if row["folder"] in cases.predictions]
    room = max(1, MAX_PANELS // max(1, len(cases.chosen)) - 1)
    rows, left_out = rows[:room], max(0, len(rows) - room)
    side = _side(len(cases.chosen) * (1 + len(rows)))
    binary = slices.num_classes == 2
    measure = "Dice" if binary else "Dice (any label)"
    strips = []
    for place, index in enumerate(int(i) for i in cases.chosen):
        image, truth = slices.images[index], slices.masks[index]
        share = f"lesion {100 * lesion_share(slices, index):.1f} %"
        panels = [
            Panel(
                paint(image, _classes(truth), side),
                ("Ground truth", share),
                f"{slice_name(slices, index)} with the true lesion in colour; {share}",
            )
        ]
        for row in rows:
            labels = cases.predictions[row["folder"]][place].labels
            score = f"{measure} {100 * _any_label_dice(labels, truth):.1f} %"
            areas = _outcome(labels > 0, truth > 0) if binary else _classes(labels)
            panels.append(
                Panel(
                    paint(image, areas, side),
                    (MODEL_NAMES[row["model"]], loss_label(row), score),
                    f"{slice_name(slices, index)} as {row_label(row)} sees it; {score}",
                )
            )
        strips.append(Strip(slice_name(slices, index), panels))
    if not binary:
        legend = [(colours.class_colour(k), f"label {v}") for k, v in enumerate(slices.label_values, 1)]
    else:
        legend = [
            (colours.HIT, "lesion: true, or found"),
            (colours.FALSE_ALARM, "marked, but no lesion"),
            (colours.MISSED, "lesion missed"),
        ]
    return Strips(strips, legend, left_out=left_out)


def attention(rows: list[dict[str, Any]], slices: SliceSet, cases: Cases, count: int = 2) -> Strips:
    """Each gate's coefficients alpha over the slice, finest gate first, for every A-SegNet row."""
    rows = [row for row in rows if row["model"] == "a_segnet" and row["folder"] in cases.predictions]
    # From the middle upwards: maps of a slice with hardly any lesion tell little.
    places = sorted(range(len(cases.chosen)), key=lambda p: abs(p - 0.7 * (len(cases.chosen) - 1)))[:count]
    gates = max((len(p.alphas) for row in rows for p in cases.predictions[row["folder"]]), default=0)
    room = max(1, MAX_PANELS // max(1, len(places) * (1 + gates)))
    rows, left_out = rows[:room], max(0, len(rows) - room)
    side = _side(len(rows) * len(places) * (1 + gates))
    strips = []
    for row in rows:
        for place in sorted(places):
            index = int(cases.chosen[place])
            image, truth = slices.images[index], slices.masks[index] > 0
            name = slice_name(slices, index)
            panels = [
                Panel(
                    paint(image, [(truth, colours.HIT)], side),
                    ("Ground truth", f"lesion {100 * lesion_share(slices, index):.1f} %"),
                    f"{name} with the true lesion in colour",
                )
            ]
            for gate, alpha in enumerate(cases.predictions[row["folder"]][place].alphas, 1):
                told = _alpha_in_words(alpha, truth)
                size = f"{alpha.shape[0]} x {alpha.shape[1]}"
                panels.append(
                    Panel(
                        heat(image, alpha, side),
                        (f"Gate {gate} ({size})", *told),
                        f"Gate {gate} of {row_label(row)} over {name}: {', '.join(told)}",
                    )
                )
            strips.append(Strip(f"{loss_label(row)}: {name}", panels))
    return Strips(strips, [(colours.HIT, "true lesion")], scale=True, left_out=left_out)


def write_strips(figure_of: Strips, path: Path) -> None:
    """Write a figure of CT pictures as PNG, on white, with its captions and legend."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from asegnet_fast.report.charts import save

    longest = max(len(strip.panels) for strip in figure_of.strips)
    columns = math.ceil(longest / math.ceil(longest / MAX_COLUMNS))
    height, width = figure_of.strips[0].panels[0].picture.shape[:2]
    captions = max(len(panel.caption) for strip in figure_of.strips for panel in strip.panels)
    # Everything below is in inches from the upper left corner.
    side, gap, margin, line, title, foot = 1.9, 0.1, 0.15, 0.135, 0.3, 0.35
    step = side * height / width + line * captions + 0.16
    lines = [math.ceil(len(strip.panels) / columns) for strip in figure_of.strips]
    legend = sum(0.45 + 0.075 * len(name) for _, name in figure_of.legend) + 2.6 * figure_of.scale
    whole = max(2 * margin + columns * (side + gap) - gap, legend + 2 * margin)
    tall = 2 * margin + title * len(lines) + step * sum(lines) + foot
    figure = Figure(figsize=(whole, tall), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    y = margin
    for strip, number in zip(figure_of.strips, lines, strict=True):
        axis.text(margin, y + title - 0.09, strip.title, fontsize=9, fontweight="bold")
        y += title
        for place, panel in enumerate(strip.panels):
            left = margin + place % columns * (side + gap)
            top = y + place // columns * step
            bottom = top + side * height / width
            axis.imshow(panel.picture, extent=(left, left + side, bottom, top), interpolation="nearest")
            for k, text in enumerate(panel.caption, 1):
                axis.text(left, bottom + k * line, text, fontsize=7.5)
        y += number * step
    y, x = tall - margin, margin
    for colour, name in figure_of.legend:
        axis.add_patch(Rectangle((x, y - 0.12), 0.18, 0.12, color=colour))
        axis.text(x + 0.24, y, name, fontsize=8)
        x += 0.45 + 0.075 * len(name)
    if figure_of.scale:
        axis.text(x, y, "gate coefficient α   0", fontsize=8)
        ramp = colour_map(np.linspace(0, 1, 64))[None]
        axis.imshow(ramp, extent=(x + 1.25, x + 2.25, y, y - 0.12), interpolation="nearest")
        axis.text(x + 2.32, y, "1", fontsize=8)
    axis.set(xlim=(0, whole), ylim=(tall, 0))
    axis.set_axis_off()
    save(figure, path)


def _side(panels: int) -> int:
    """The largest side at which this many pictures keep to `PIXELS`."""
    return next((side for side in SIDES if panels * side**2 <= PIXELS), SIDES[-1])


def _classes(mask: np.ndarray) -> list[tuple[np.ndarray, str]]:
    return [(mask == label, colours.class_colour(int(label))) for label in np.unique(mask[mask > 0])]


def _outcome(predicted: np.ndarray, truth: np.ndarray) -> list[tuple[np.ndarray, str]]:
    return [
        (predicted & truth, colours.HIT),
        (predicted & ~truth, colours.FALSE_ALARM),
        (~predicted & truth, colours.MISSED),
    ]


def _any_label_dice(labels: np.ndarray, truth: np.ndarray) -> float:
    total = np.sum(labels > 0) + np.sum(truth > 0)
    return 1.0 if total == 0 else float(2 * np.sum((labels > 0) & (truth > 0)) / total)


def _alpha_in_words(alpha: np.ndarray, truth: np.ndarray) -> tuple[str, ...]:
    """The range of a gate's coefficients, and their means inside and outside the true lesion."""
    rows = np.arange(len(truth)) * alpha.shape[0] // len(truth)
    columns = np.arange(truth.shape[1]) * alpha.shape[1] // truth.shape[1]
    full = alpha[rows][:, columns]
    told = [f"α {alpha.min():.2f} to {alpha.max():.2f}"]
    if truth.any() and not truth.all():
        told.append(f"lesion {full[truth].mean():.2f}, rest {full[~truth].mean():.2f}")
    return tuple(told)
