"""The rows of a finished cross-validation as records: counts of every test slice, on the network's own pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.cases import Case
from asegnet_fast.evaluation.record import Record, gather
from asegnet_fast.files import read_json


def fold_slices(run: Path) -> list[list[dict[str, Any]]]:
    """The test slices of each fold of a run, as folds.json lists them.

    Returns:
        For each fold a list of {"file", "index", "group"}.

    Raises:
        ValueError: no folds.json, or a damaged one.
    """
    path = Path(run) / "folds.json"
    content = read_json(path)
    try:
        folds = [
            [
                {"file": str(s["file"]), "index": int(s["index"]), "group": str(s["group"])}
                for s in fold["test"]
            ]
            for fold in content["folds"]
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: expected folds with their test slices, got damaged ones") from None
    return folds


def run_record(
    name: str,
    metrics: Mapping[int, dict[str, Any]],
    slices: list[list[dict[str, Any]]],
    labels: tuple[int, ...],
) -> Record:
    """One row of a run as a record; its cases are the slices of one file and group.

    Args:
        name: of the row.
        metrics: the content of metrics.json of each finished fold.
        slices: of `fold_slices`.
        labels: label value of each class.

    Raises:
        ValueError: counts that do not belong to the slices.
    """
    parts: dict[tuple[str, str], list[tuple[int, int, np.ndarray]]] = {}
    for fold, content in sorted(metrics.items()):
        counts = np.asarray(content["counts"], np.int64)
        if fold >= len(slices) or counts.shape != (len(slices[fold]), len(labels), 4):
            raise InputError(
                f"{name}/fold{fold}: expected counts of the fold's test slices and {len(labels)} classes, "
                f"got an array of shape {list(counts.shape)}"
            )
        for where, row in zip(slices[fold], counts, strict=True):
            parts.setdefault((where["file"], where["group"]), []).append((where["index"], fold, row))
    files = [file for file, _ in parts]
    cases = []
    for (file, group), rows in sorted(parts.items()):
        rows.sort(key=lambda row: row[0])
        indices, folds, counts = zip(*rows, strict=True)
        cases.append(
            Case(
                name=f"{file} [{group}]" if files.count(file) > 1 else file,
                unit=group,
                indices=indices,
                folds=folds,
                labels=labels,
                pixels=int(counts[0][0].sum()),
                counts=np.stack(counts),
                space=None,
            )
        )
    return gather(name, cases)
