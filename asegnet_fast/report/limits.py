"""What weakens the numbers of a run, told from its own files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asegnet_fast import paper
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.statistics import Interval
from asegnet_fast.files import read_csv, read_json
from asegnet_fast.report.conclusions import FEWEST_UNITS
from asegnet_fast.report.counts import RunCounts, floor, past_the_floor
from asegnet_fast.report.table import percent, row_label

FEW_UNITS = 20
#: The columns of history.csv about the slices that were held out.
TESTED = ("test_dice", "test_sensitivity", "test_specificity")
#: Points of Dice that a row must have gained in the last fifth of its epochs to count as still learning.
STILL_LEARNING = 1.0


def read_history(path: Path, epochs: int | None = None, more: Sequence[str] = ()) -> list[dict[str, float]]:
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


def row_histories(run: Path, row: dict[str, Any]) -> dict[int, list[dict[str, float]]]:
    """Fold -> history of every finished fold of a row, each as long as its metrics.json says it trained."""
    paths = sorted((run / row["folder"]).glob("fold*/history.csv"), key=lambda p: int(p.parent.name[4:]))
    return {
        int(path.parent.name[4:]): read_history(
            path, read_json(path.parent / "metrics.json").get("epochs"), TESTED
        )
        for path in paths
        if (path.parent / "metrics.json").exists()
    }


def limits(
    run: Path,
    summary: dict[str, Any],
    settings: dict[str, Any],
    counts: RunCounts,
    intervals: dict[str, dict[str, Interval]],
) -> list[str]:
    """Each weakness of a run as one sentence; those that bear most come first.

    Args:
        run: its folder.
        summary: the content of its summary.json.
        settings: the settings in its config.json.
        counts: its counts.
        intervals: row folder -> measure -> interval, for the comparison with the floor.
    """
    units = len(set(counts.groups) - {""})
    told = []
    if summary["split"] == "slice":
        told.append(
            f"The split is by slice: {summary['leak_percent']:.1f} % of the test slices have a neighbour of the same "
            "scan in training, so every score is too high for a patient whom the network has never seen."
        )
    told += _collapsed(summary, counts)
    passed = past_the_floor(summary, intervals)
    if low := [row_label(row) for row in summary["rows"] if row["folder"] not in passed]:
        told.append(
            "Not shown to be better than the best constant answer "
            f"(Dice {percent(floor(summary))}), because the interval reaches it: {_listed(low, len(summary['rows']))}."
        )
    if units < FEW_UNITS:
        told.append(
            f"All slices come from {units} patients or files, and only these are independent"
            + (
                f"; below {FEWEST_UNITS} no paired test can decide anything."
                if units < FEWEST_UNITS
                else ", so intervals are wide and themselves uncertain."
            )
        )
    if summary["epochs"] < paper.EPOCHS:
        told.append(
            f"Trained for {_times(summary['epochs'], 'epoch')}; the paper trained for {paper.EPOCHS}."
        )
    if settings.get("early_stopping"):
        told.append("Folds stopped early where their inner validation had not improved any more.")
    learning = [row_label(row) for row in summary["rows"] if _still_learning(run, row)]
    if learning:
        told.append(
            f"Still gaining on the test slices when training stopped (more than {STILL_LEARNING:g} point of Dice in "
            f"the last fifth of the epochs, mean over folds): {_listed(learning, len(summary['rows']))}."
        )
    told.append(
        f"One seed ({settings.get('seed')}): each row was trained once a fold. The intervals tell how much the choice "
        "of patients matters, not how much another start or another order of the slices would change."
    )
    if settings.get("size", paper.SIZE) != paper.SIZE:
        side, ours = paper.SIZE, settings["size"]
        told.append(f"Slices are {ours} x {ours} pixels; the paper's are {side} x {side}.")
    if settings.get("widths"):
        told.append(
            f"The networks have widths {', '.join(map(str, settings['widths']))} of their own, not those of a preset."
        )
    if settings.get("precision") == "bf16":
        told.append("The networks computed in bfloat16.")
    if part := [row_label(row) for row in summary["rows"] if row["folds"] < summary["folds"]]:
        told.append(f"Measured on fewer than {summary['folds']} folds, so on fewer slices: {_listed(part)}.")
    if summary["missing_rows"]:
        told.append(f"Rows without a finished fold: {_listed(summary['missing_rows'])}.")
    return told


def _collapsed(summary: dict[str, Any], counts: RunCounts) -> list[str]:
    """Folds that answer the same for every pixel."""
    nothing, everything = [], []
    for row in summary["rows"]:
        table = counts.by_row[row["folder"]]
        blank, full = [], []
        for fold in np.unique(counts.folds[counts.tested([row["folder"]])]):
            tp, fp, fn, tn = table[counts.folds == fold].sum((0, 1))
            if tp + fp == 0:
                blank.append(str(fold))
            elif fn + tn == 0:
                full.append(str(fold))
        for folds, found in ((blank, nothing), (full, everything)):
            if folds:
                found.append(f"{row_label(row)} (fold{'s' if len(folds) > 1 else ''} {', '.join(folds)})")
    told = []
    if nothing:
        told.append(f"Predicts no lesion on any test slice: {_listed(nothing)}.")
    if everything:
        told.append(f"Predicts lesion for every pixel of every test slice: {_listed(everything)}.")
    return told


def _still_learning(run: Path, row: dict[str, Any]) -> bool:
    try:
        histories = row_histories(run, row).values()
    except InputError:
        return False  # named where the curves are drawn
    gains = [
        100 * (history[-1]["test_dice"] - history[-1 - math.ceil(len(history) / 5)]["test_dice"])
        for history in histories
        if len(history) > 1
    ]
    return bool(gains) and float(np.mean(gains)) > STILL_LEARNING


def _listed(names: Sequence[str], everyone: int = 0, most: int = 4) -> str:
    """Some names, or `all N rows` where these are all of `everyone` (2 or more)."""
    if len(names) == everyone > 1:
        return f"all {everyone} rows"
    # Labels of rows have commas in them.
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _times(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
