"""The pictures of a run: data samples, qualitative grid, training curves, one fold's progress.

Drawn with matplotlib's own canvas (no window, no global state). Colours are of Okabe and Ito's set, which
colour-blind readers tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from asegnet_fast.errors import InputError
from asegnet_fast.files import read_csv, read_json, replacing
from asegnet_fast.report.table import MODEL_NAMES, loss_label

#: The columns of history.csv about the slices that were held out.
TESTED = ("test_dice", "test_sensitivity", "test_specificity")

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet

SKY, ORANGE, PINK, GREEN, YELLOW, BLUE, RED = (
    "#56B4E9",
    "#E69F00",
    "#CC79A7",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
)
CLASS_COLOURS = (SKY, ORANGE, PINK, GREEN, YELLOW)
LINE_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
HIT, FALSE_ALARM, MISSED = SKY, ORANGE, PINK
FILL = 0.55  # opacity of a coloured area over the CT
DPI = 130
MAX_COLUMNS = 8


def write_figures(run: Path, summary: dict[str, Any], slices: SliceSet) -> None:
    """Write figures/data_samples.png, qualitative.png and training_curves.png into the folder of a run.

    Args:
        run: the folder, with its checkpoints, folds.json and history.csv files.
        summary: the content of its summary.json.
        slices: the data the run was made on.

    Raises:
        ValueError: a file of the run is absent or damaged; the message names it.
    """
    run = Path(run)
    data_samples(slices, run / "figures" / "data_samples.png")
    training_curves(run, summary, run / "figures" / "training_curves.png")
    qualitative(run, summary, slices, run / "figures" / "qualitative.png")


def spread_slices(slices: SliceSet, candidates: np.ndarray, count: int) -> np.ndarray:
    """Choose slices from small lesions to large ones, of different groups where there are enough.

    Args:
        slices: the data.
        candidates: indices to choose from.
        count: how many are wanted.

    Returns:
        At most `count` indices, by rising lesion share.
    """
    share = (slices.masks[candidates] > 0).mean((1, 2))
    ordered = candidates[np.argsort(share, kind="stable")]
    ordered = ordered[np.sort(share) > 0] if (share > 0).any() else ordered
    chosen: list[int] = []
    used: set[Any] = set()
    for quantile in np.linspace(0.15, 0.97, min(count, len(ordered))):
        wanted = quantile * (len(ordered) - 1)
        places = sorted(
            (i for i in range(len(ordered)) if int(ordered[i]) not in chosen), key=lambda i: abs(i - wanted)
        )
        fresh = [i for i in places[: max(1, len(ordered) // 4)] if slices.groups[ordered[i]] not in used]
        index = int(ordered[(fresh or places)[0]])
        chosen.append(index)
        used.add(slices.groups[index])
    return np.array(sorted(chosen, key=lambda i: float((slices.masks[i] > 0).mean())), dtype=np.int64)


def data_samples(slices: SliceSet, path: Path, count: int = 6) -> None:
    """Draw slices of the data set, each as CT and as CT with its labels in colour (as the paper's Fig. 3)."""
    chosen = spread_slices(slices, np.arange(len(slices.images)), count)
    figure = Figure(figsize=(1.9 * len(chosen), 4.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for column, index in enumerate(chosen):
        share = 100 * float((slices.masks[index] > 0).mean())
        _ct(axes[0, column], slices.images[index])
        _ct(axes[1, column], slices.images[index])
        _labels(axes[1, column], slices.masks[index])
        axes[0, column].set_title(_name(slices, index), fontsize=8)
        axes[1, column].set_xlabel(f"lesion {share:.1f} %", fontsize=8)
    axes[0, 0].set_ylabel("CT", fontsize=9)
    axes[1, 0].set_ylabel("with labels", fontsize=9)
    _legend(figure, _class_patches(slices))
    _save(figure, path)


def qualitative(run: Path, summary: dict[str, Any], slices: SliceSet, path: Path, count: int = 4) -> None:
    """Draw test slices with the ground truth, then each row's prediction (as the paper's Fig. 4).

    Each slice is predicted by the fold that did not train on it. With one lesion class, colours tell what was
    hit, falsely marked and missed; with several, they are the classes.
    """
    rows = summary["rows"]
    fold_of: dict[int, int] = {}
    for fold in range(summary["folds"]):
        files = [run / row["folder"] / f"fold{fold}" / "metrics.json" for row in rows]
        if all(file.exists() for file in files):
            fold_of |= dict.fromkeys(read_json(files[0])["test_indices"], fold)
    if not fold_of:
        path.unlink(missing_ok=True)  # one of an earlier state would not be of these rows
        return
    candidates = np.array(sorted(fold_of), dtype=np.int64)
    chosen = spread_slices(slices, candidates, count)
    predictions = _predictions(run, rows, slices, chosen, fold_of)

    panels = 1 + len(rows)
    columns = panels if panels <= MAX_COLUMNS else math.ceil(panels / 2)
    lines = math.ceil(panels / columns)
    figure = Figure(
        figsize=(max(2.1 * columns, 6), 2.8 * lines * len(chosen) + 0.5), dpi=DPI, layout="constrained"
    )
    axes = figure.subplots(lines * len(chosen), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    binary = slices.num_classes == 2
    for s, index in enumerate(chosen):
        truth = slices.masks[index]
        for panel in range(panels):
            axis = axes[s * lines + panel // columns, panel % columns]
            axis.set_axis_on()
            _ct(axis, slices.images[index])
            if panel == 0:
                _labels(axis, truth)
                axis.set_title("Ground truth", fontsize=8)
                axis.set_xlabel(_name(slices, index), fontsize=7.5)
                continue
            predicted = predictions[rows[panel - 1]["folder"]][s]
            if binary:
                _outcome(axis, predicted > 0, truth > 0)
            else:
                _labels(axis, predicted)
            hit = 2 * np.sum((predicted > 0) & (truth > 0))
            total = np.sum(predicted > 0) + np.sum(truth > 0)
            score = 1.0 if total == 0 else hit / total
            axis.set_title(
                f"{MODEL_NAMES[rows[panel - 1]['model']]}\n{loss_label(rows[panel - 1])}", fontsize=8
            )
            of_what = "Dice" if binary else "Dice (any label)"
            axis.set_xlabel(f"{of_what} {100 * score:.1f} %", fontsize=7.5)
    if binary:
        names = (
            (HIT, "lesion: true, or found"),
            (FALSE_ALARM, "marked, but no lesion"),
            (MISSED, "lesion missed"),
        )
        patches = [Patch(color=colour, label=name) for colour, name in names]
    else:
        patches = _class_patches(slices)
    _legend(figure, patches)
    _save(figure, path)


def training_curves(run: Path, summary: dict[str, Any], path: Path) -> None:
    """Draw training loss and test Dice by epoch, the mean over folds with their range shaded."""
    models = [model for model in MODEL_NAMES if any(row["model"] == model for row in summary["rows"])]
    figure = Figure(figsize=(10.5, 3.4 * len(models) + 0.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False, sharex=True, sharey="col")
    labels = list(dict.fromkeys(loss_label(row) for row in summary["rows"]))
    for m, model in enumerate(models):
        for row in (row for row in summary["rows"] if row["model"] == model):
            i = labels.index(loss_label(row))
            colour, style = LINE_COLOURS[i % len(LINE_COLOURS)], LINE_STYLES[i % len(LINE_STYLES)]
            paths = sorted((run / row["folder"]).glob("fold*/history.csv"))
            histories = [
                _history(path, read_json(metrics).get("epochs"), TESTED)
                for path in paths
                if (metrics := path.parent / "metrics.json").exists()
            ]
            longest = max(map(len, histories))  # early stopping ends folds at different epochs
            for axis, key, scale in ((axes[m, 0], "loss", 1), (axes[m, 1], "test_dice", 100)):
                values = np.full((len(histories), longest), np.nan)
                for line, history in zip(values, histories, strict=True):
                    line[: len(history)] = [scale * record[key] for record in history]
                epochs = np.arange(1, longest + 1)
                marker = "o" if len(epochs) == 1 else None
                low, middle, high = (f(values, 0) for f in (np.nanmin, np.nanmean, np.nanmax))
                axis.plot(epochs, middle, style, color=colour, marker=marker, label=loss_label(row))
                axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes[m, 0].set_ylabel("training loss", fontsize=9)
        axes[m, 1].set_ylabel("Dice on test slices (pooled), %", fontsize=9)
        for axis in axes[m]:
            axis.set_title(MODEL_NAMES[model], fontsize=10)
            _plain(axis)
    for axis in axes[-1]:
        axis.set_xlabel("epoch (line: mean over folds; shade: their range)", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles = {line.get_label(): line for axis in axes[:, 0] for line in axis.get_lines()}
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def fold_progress(folder: Path, title: str) -> None:
    """Draw progress.png from a history.csv: loss, learning rate, and measures on the slices that were held out."""
    history = _history(folder / "history.csv")
    epochs = [int(line["epoch"]) for line in history]
    figure = Figure(figsize=(7, 6.5), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11)
    names = dict(zip(TESTED, ("Dice", "sensitivity", "specificity"), strict=True))
    names |= {"inner_dice": "Dice, inner validation"}
    names = {key: name for key, name in names.items() if key in history[0]}
    ratios = (2, 2, 1) if names else (2, 1)
    top, *middle, bottom = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    marker = "o" if len(epochs) == 1 else None
    top.plot(epochs, [line["loss"] for line in history], color=BLUE, marker=marker)
    top.set_ylabel("training loss", fontsize=9)
    for (key, name), colour, style in zip(
        names.items(), (BLUE, ORANGE, GREEN, RED), LINE_STYLES, strict=False
    ):
        values = [100 * line[key] for line in history]
        middle[0].plot(epochs, values, style, color=colour, marker=marker, label=name)
    for axis in middle:
        axis.set_ylabel("test slices, %" if "test_dice" in names else "%", fontsize=9)
        axis.set_ylim(-2, 102)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    bottom.step(epochs, [line["lr"] for line in history], color=RED, where="mid", marker=marker)
    bottom.set_ylabel("learning rate", fontsize=9)
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("epoch", fontsize=9)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axis in (top, *middle, bottom):
        _plain(axis)
    _save(figure, folder / "progress.png")


def _history(path: Path, epochs: int | None = None, more: Sequence[str] = ()) -> list[dict[str, float]]:
    """The lines of a history.csv as numbers, NaN where a cell is empty.

    Args:
        path: the file.
        epochs: how many lines it must have; None for any number from 1.
        more: columns it must have besides epoch, lr and loss.

    Raises:
        ValueError: absent, damaged or of another length; the message names the file.
    """
    needed = {"epoch", "lr", "loss", *more}
    try:
        lines = [
            {key: float(cell) if cell else math.nan for key, cell in line.items()} for line in read_csv(path)
        ]
        whole = bool(lines) and needed <= set(lines[0]) and len(lines) == (epochs or len(lines))
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{path}: expected a line of numbers for each epoch, got a damaged file")
    return lines


def _predictions(
    run: Path, rows: list, slices: SliceSet, chosen: np.ndarray, fold_of: dict
) -> dict[str, list]:
    """Row folder -> one label map [S, S] for each chosen slice, by the fold that tested it; on the CPU."""
    import torch

    from asegnet_fast.checkpoint import load_network, normalised, read_checkpoint

    predictions: dict[str, list] = {row["folder"]: [None] * len(chosen) for row in rows}
    for row in rows:
        for fold in sorted({fold_of[int(i)] for i in chosen}):
            folder = run / row["folder"] / f"fold{fold}"
            content = read_checkpoint(folder / "checkpoint_last.pt")
            if content.get("identity") != read_json(folder / "metrics.json").get("identity"):
                raise InputError(f"{folder / 'checkpoint_last.pt'}: expected this fold's, got another one's")
            network = load_network(content)
            for place, index in enumerate(chosen):
                if fold_of[int(index)] == fold:
                    image = torch.from_numpy(slices.images[index : index + 1].copy())
                    with torch.inference_mode():
                        labels = network(normalised(image, content["normalisation"])).argmax(1)
                    predictions[row["folder"]][place] = labels[0].numpy()
    return predictions


def _name(slices: SliceSet, index: int) -> str:
    """Where a slice comes from, e.g. `rp_im/4, slice 11`; the end of a long path."""
    source = str(slices.sources[index]).removesuffix(".gz").removesuffix(".nii")
    return f"{source if len(source) <= 20 else '…' + source[-19:]}, slice {slices.indices[index]}"


def _ct(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _labels(axis: Axes, mask: np.ndarray) -> None:
    for label in np.unique(mask[mask > 0]):
        _area(axis, mask == label, CLASS_COLOURS[(int(label) - 1) % len(CLASS_COLOURS)])


def _outcome(axis: Axes, predicted: np.ndarray, truth: np.ndarray) -> None:
    _area(axis, predicted & truth, HIT)
    _area(axis, predicted & ~truth, FALSE_ALARM)
    _area(axis, ~predicted & truth, MISSED)


def _area(axis: Axes, area: np.ndarray, colour: str) -> None:
    from matplotlib.colors import to_rgb

    layer = np.zeros((*area.shape, 4))
    layer[area] = (*to_rgb(colour), FILL)
    axis.imshow(layer, interpolation="nearest")
    if area.any() and not area.all():
        axis.contour(area, levels=[0.5], colors=[colour], linewidths=0.6)


def _class_patches(slices: SliceSet) -> list[Patch]:
    if slices.num_classes == 2:
        return [Patch(color=CLASS_COLOURS[0], label="lesion")]
    return [
        Patch(color=CLASS_COLOURS[i % len(CLASS_COLOURS)], label=f"label {value}")
        for i, value in enumerate(slices.label_values)
    ]


def _legend(figure: Figure, patches: list[Patch]) -> None:
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
