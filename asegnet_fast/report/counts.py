"""The pixel counts of a run, slice by slice, with the patient or file each slice belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asegnet_fast.data import read_cases
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.overlap import PAPER_MEASURES, dice
from asegnet_fast.evaluation.statistics import Interval, class_mean, pooled_interval
from asegnet_fast.files import read_json


@dataclass(frozen=True)
class RunCounts:
    """What the finished folds of a run counted.

    Attributes:
        groups: for each slice of the set, the patient or file it belongs to; folds split by patient keep it whole.
        files: for each slice, its image file.
        folds: int64 [slices of the set], the fold that tests each.
        by_row: row folder -> int64 [slices of the set, lesion classes, 4], TP, FP, FN, TN; -1 where a slice's
            fold is not finished.
    """

    groups: tuple[str, ...]
    files: tuple[str, ...]
    folds: np.ndarray
    by_row: dict[str, np.ndarray]

    def tested(self, rows: list[str]) -> np.ndarray:
        """Positions of the slices on which all these rows have been measured."""
        return np.flatnonzero(np.all([self.by_row[row][:, 0, 0] >= 0 for row in rows], axis=0))


def read_counts(run: Path, summary: dict[str, Any]) -> RunCounts:
    """Read the counts of every finished fold.

    Args:
        run: the folder of a run.
        summary: the content of its summary.json.

    Raises:
        ValueError: folds.json or a metrics.json is absent, damaged or does not belong to the other.
    """
    path = run / "folds.json"
    cases = read_cases(path, summary["data"]["fingerprint"])
    total = sum(len(part) for part in cases)
    groups, files = [""] * total, [""] * total
    folds = np.full(total, -1, np.int64)
    by_row: dict[str, np.ndarray] = {}
    for row in summary["rows"]:
        for fold in range(summary["folds"]):
            metrics = run / row["folder"] / f"fold{fold}" / "metrics.json"
            if not metrics.exists():
                continue
            content = read_json(metrics)
            indices = np.array(content["test_indices"], np.int64)
            if len(indices) != len(cases[fold]) or not ((indices >= 0) & (indices < total)).all():
                raise InputError(
                    f"{metrics}: expected the {len(cases[fold])} test slices of {path}, got others"
                )
            counts = np.array(content["counts"], np.int64)
            table = by_row.setdefault(row["folder"], np.full((total, *counts.shape[1:]), -1, np.int64))
            table[indices] = counts
            folds[indices] = fold
            for place, (file, _, group) in zip(content["test_indices"], cases[fold], strict=True):
                files[place], groups[place] = file, group
    return RunCounts(tuple(groups), tuple(files), folds, by_row)


def row_intervals(counts: RunCounts) -> dict[str, dict[str, Interval]]:
    """Row folder -> measure of the paper -> the pooled value with its interval over patients or files."""
    found = {}
    for folder, table in counts.by_row.items():
        tested = counts.tested([folder])
        units = [counts.groups[i] for i in tested]
        found[folder] = {
            name: pooled_interval(table[tested], units, measure) for name, measure in PAPER_MEASURES.items()
        }
    return found


def fold_dice(counts: RunCounts, row: str) -> dict[int, float]:
    """Fold -> pooled Dice of its test slices, for the finished folds of a row."""
    table = counts.by_row[row]
    tested = counts.tested([row])
    return {
        int(fold): float(class_mean(dice(table[tested[counts.folds[tested] == fold]].sum(0))))
        for fold in np.unique(counts.folds[tested])
    }


def floor(summary: dict[str, Any]) -> float:
    """Pooled Dice of the best answer that is the same for every pixel."""
    return summary["trivial"]["best_constant"]["dice"]["pooled"]


def past_the_floor(summary: dict[str, Any], intervals: dict[str, dict[str, Interval]]) -> set[str]:
    """Folders of the rows whose whole interval of Dice lies above the floor."""
    return {row for row, measures in intervals.items() if measures["dice"].low > floor(summary)}
