"""The charts of a run: measures against the paper's Fig. 5, training curves, one fold's progress.

Drawn with matplotlib's own canvas (no window, no global state). SVG charts follow the reader's light or dark scheme:
what is drawn in `INK` takes the page's text colour, and nothing is drawn behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asegnet_fast import paper
from asegnet_fast.evaluation.statistics import Interval
from asegnet_fast.files import replacing
from asegnet_fast.report.colours import BLUE, GREY, LINES, OCHRE, RED, STYLES, TEAL
from asegnet_fast.report.limits import TESTED, read_history, row_histories
from asegnet_fast.report.pictures import DPI
from asegnet_fast.report.table import MODEL_NAMES, loss_label, row_label

INK = "#010203"  # stands for the text's colour until an SVG is written
MEASURE_NAMES = {"dice": "Dice", "sensitivity": "Sensitivity", "specificity": "Specificity"}
_SCHEMES = (
    "<style>svg{color:#1c1e21;background:#fff}"
    "@media screen and (prefers-color-scheme:dark){svg{color:#e4e6ea;background:#1b1e24}}</style>"
)
_INKED = {
    name: INK
    for name in (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
        "grid.color",
    )
}


def comparison(
    summary: dict[str, Any], intervals: dict[str, dict[str, Interval]], measure: str, path: Path
) -> None:
    """Draw bars of a pooled measure beside Zhou et al. and the paper's best row (as the paper's Fig. 5), as SVG.

    Args:
        summary: the content of summary.json.
        intervals: of every row, as `row_intervals` finds them; drawn as a line on the row's bar.
        measure: "dice", "sensitivity" or "specificity".
        path: the file to write.
    """
    place = list(MEASURE_NAMES).index(measure)
    model, loss = paper.BEST
    kind, *numbers = loss.split(":")
    best = {"model": model, "loss": kind} | dict(
        zip(("alpha", "beta", "gamma"), map(float, map(Fraction, numbers)), strict=True)
    )
    published = [paper.ZHOU[place], paper.TABLE1[loss][model][place]]
    names = ["Zhou et al.", f"paper: {row_label(best)}", *(row_label(row) for row in summary["rows"])]
    ours = [100 * _or_nan(row[measure]["pooled"]) for row in summary["rows"]]
    with rc_context(_INKED):
        figure = Figure(figsize=(4.6, 0.23 * len(names) + 0.6), layout="constrained")
        axis = figure.subplots()
        axis.barh(range(len(names)), published + ours, color=[GREY, OCHRE] + [BLUE] * len(ours), height=0.7)
        for line, row in enumerate(summary["rows"], len(published)):
            found = intervals[row["folder"]][measure]
            if not math.isnan(found.low + found.high):
                ends = [100 * found.low, 100 * found.high]
                axis.plot(ends, [line, line], color=INK, linewidth=1.2, solid_capstyle="butt")
            if row["paper"]:
                axis.plot(
                    100 * row["paper"][measure], line, "D", color=OCHRE, markeredgecolor=INK, markersize=4.5
                )
        for line, value in enumerate(published + ours):
            if not math.isnan(value):
                axis.text(104, line, f"{value:.1f}", va="center", fontsize=7.5)
        axis.set_xlim(0, 118)
        axis.set_xticks(range(0, 101, 25))
        axis.set_yticks(range(len(names)), names)
        plain(axis)
        axis.grid(axis="y", visible=False)
        axis.invert_yaxis()
        save(figure, path)


def training_curves(run: Path, summary: dict[str, Any], path: Path) -> None:
    """Draw training loss and test Dice by epoch as SVG, the mean over folds with their range shaded."""
    models = [model for model in MODEL_NAMES if any(row["model"] == model for row in summary["rows"])]
    with rc_context(_INKED):
        figure = Figure(figsize=(9.5, 3 * len(models) + 0.6), layout="constrained")
        axes = figure.subplots(len(models), 2, squeeze=False, sharex=True, sharey="col")
        labels = list(dict.fromkeys(loss_label(row) for row in summary["rows"]))
        for m, model in enumerate(models):
            for row in (row for row in summary["rows"] if row["model"] == model):
                i = labels.index(loss_label(row))
                colour, style = LINES[i % len(LINES)], STYLES[i % len(STYLES)]
                histories = list(row_histories(run, row).values())
                for axis, key, scale in ((axes[m, 0], "loss", 1), (axes[m, 1], "test_dice", 100)):
                    # A fold that stopped early is in the mean up to its last epoch.
                    values = np.full((len(histories), max(map(len, histories), default=0)), np.nan)
                    for place, history in enumerate(histories):
                        values[place, : len(history)] = [scale * line[key] for line in history]
                    values = values[:, ~np.isnan(values).all(0)] if values.size else values
                    if not values.size:
                        continue
                    epochs = np.arange(1, values.shape[1] + 1)
                    axis.plot(
                        epochs,
                        np.nanmean(values, 0),
                        style,
                        color=colour,
                        marker=_marker(epochs),
                        label=loss_label(row),
                    )
                    axis.fill_between(
                        epochs,
                        np.nanmin(values, 0),
                        np.nanmax(values, 0),
                        color=colour,
                        alpha=0.15,
                        linewidth=0,
                    )
            axes[m, 0].set_ylabel("training loss", fontsize=9)
            axes[m, 1].set_ylabel("Dice on test slices, %", fontsize=9)
            for axis in axes[m]:
                axis.set_title(MODEL_NAMES[model], fontsize=10)
                plain(axis)
        for axis in axes[-1]:
            axis.set_xlabel("epoch", fontsize=9)
            axis.xaxis.get_major_locator().set_params(integer=True)
        handles = {line.get_label(): line for axis in axes[:, 0] for line in axis.get_lines()}
        figure.legend(
            handles=list(handles.values()),
            loc="outside lower center",
            ncols=min(4, max(1, len(handles))),
            fontsize=8,
            frameon=False,
        )
        save(figure, path)


def fold_curves(run: Path, row: dict[str, Any], path: Path) -> None:
    """Draw training loss and test Dice of every fold of a row by epoch, as SVG."""
    histories = row_histories(run, row)
    with rc_context(_INKED):
        figure = Figure(figsize=(4.6, 2.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (fold, history) in enumerate(histories.items()):
            numbers = [int(line["epoch"]) for line in history]
            look = {"color": LINES[i % len(LINES)], "linestyle": STYLES[i % len(STYLES)], "linewidth": 1.2}
            look |= {"marker": _marker(numbers), "label": f"{fold}"}
            left.plot(numbers, [line["loss"] for line in history], **look)
            right.plot(numbers, [100 * line["test_dice"] for line in history], **look)
        left.set_title("training loss", fontsize=9)
        right.set_title("Dice on test slices, %", fontsize=9)
        right.set_ylim(-2, 102)
        for axis in (left, right):
            plain(axis)
            axis.set_xlabel("epoch", fontsize=8)
            axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=8, fontsize=7.5, frameon=False, title="fold",
            title_fontsize=7.5,
        )  # fmt: skip
        save(figure, path)


def fold_progress(folder: Path, title: str) -> None:
    """Draw progress.png from a history.csv: loss, learning rate, and measures on the slices that were held out."""
    history = read_history(folder / "history.csv")
    epochs = [int(line["epoch"]) for line in history]
    figure = Figure(figsize=(7, 6.5), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11)
    names = dict(zip(TESTED, (name.lower() for name in MEASURE_NAMES.values()), strict=True))
    names |= {"inner_dice": "Dice, inner validation"}
    names = {key: name for key, name in names.items() if key in history[0]}
    ratios = (2, 2, 1) if names else (2, 1)
    top, *middle, bottom = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    top.plot(epochs, [line["loss"] for line in history], color=BLUE, marker=_marker(epochs))
    top.set_ylabel("training loss", fontsize=9)
    for (key, name), colour, style in zip(names.items(), (BLUE, OCHRE, TEAL, RED), STYLES, strict=False):
        values = [100 * line[key] for line in history]
        middle[0].plot(epochs, values, style, color=colour, marker=_marker(epochs), label=name)
    for axis in middle:
        axis.set_ylabel("test slices, %" if "test_dice" in names else "%", fontsize=9)
        axis.set_ylim(-2, 102)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    bottom.step(epochs, [line["lr"] for line in history], color=RED, where="mid", marker=_marker(epochs))
    bottom.set_ylabel("learning rate", fontsize=9)
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("epoch", fontsize=9)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axis in (top, *middle, bottom):
        plain(axis)
    save(figure, folder / "progress.png")


def plain(axis: Axes) -> None:
    """A light grid, small numbers, no frame above and to the right."""
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in one step, as its name's ending says; the same figure gives the same bytes."""
    kind = Path(path).suffix[1:]
    with replacing(path) as temporary:
        if kind != "svg":
            figure.savefig(temporary, format=kind)
            return
        with rc_context({"svg.hashsalt": "asegnet_fast", "svg.fonttype": "path"}):
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})
        text = temporary.read_text(encoding="utf-8").replace(INK, "currentColor")
        # The prologue before the root element is of no use, and names a document type elsewhere.
        root, rest = text[text.index("<svg") :].split(">", 1)
        text = f"{root}>{_SCHEMES}{rest}"
        temporary.write_text(text, encoding="utf-8")


def _marker(epochs: Sequence[int] | np.ndarray) -> str | None:
    return "o" if len(epochs) == 1 else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
