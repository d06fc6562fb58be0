"""An evaluation as files: evaluation.json holds everything, the CSV files a line for each case and each slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.cases import Case, Space
from asegnet_fast.evaluation.conventions import Conventions
from asegnet_fast.evaluation.record import Record
from asegnet_fast.evaluation.summary import number
from asegnet_fast.files import read_json, write_csv

FORMAT = "asegnet_fast evaluation 1"
_SPACE = ("voxel_ml", "diagonal", "slice_diagonal")


def record_json(record: Record, conventions: Conventions) -> dict[str, Any]:
    """A record with everything that was measured, and the measures of each case under the conventions.

    Args:
        record: the cases.
        conventions: for empty masks; `counts` and `space` hold what was measured before they were applied.

    Returns:
        {"name", "labels", "cases": [{"name", "unit", "indices", "folds", "pixels", "counts" [slices, classes, 4],
        "space": {"voxel_ml", "diagonal", "slice_diagonal", "volume" [classes, 3], "slices" [slices, classes, 3]}
        or None, "measures": {measure: [a number for each class]}}]}
    """
    values = {name: record.values(name, conventions) for name in record.measures()}
    cases = []
    for i, case in enumerate(record.cases):
        space = case.space
        entry = {
            "name": case.name,
            "unit": case.unit,
            "indices": list(case.indices),
            "folds": None if case.folds is None else list(case.folds),
            "pixels": case.pixels,
            "counts": case.counts.tolist(),
            "space": None,
            "measures": {name: [number(float(v)) for v in array[i]] for name, array in values.items()},
        }
        if space is not None:
            entry["space"] = {name: getattr(space, name) for name in _SPACE}
            entry["space"] |= {"volume": _plain(space.volume), "slices": _plain(space.slices)}
        cases.append(entry)
    return {"name": record.name, "labels": list(record.labels), "cases": cases}


def read_records(path: Path) -> list[Record]:
    """The records of an evaluation.json.

    Args:
        path: the file, or the folder it lies in.

    Raises:
        ValueError: no such file, or not one that this program wrote.
    """
    path = Path(path) / "evaluation.json" if Path(path).is_dir() else Path(path)
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected a file of format {FORMAT!r}, got {str(content.get('format'))[:40]!r}"
        )
    try:
        return [_record(entry) for entry in content["records"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: expected a whole evaluation, got a damaged one ({error})") from None


def write_cases_csv(path: Path, records: list[Record], conventions: Conventions) -> None:
    """One line for each model, case and class; an empty cell is an undefined number."""
    rows = []
    for record in records:
        values = {name: record.values(name, conventions) for name in _common(records)}
        counts = record.counts()
        for i, case in enumerate(record.cases):
            folds = " ".join(map(str, sorted(set(case.folds or ()))))
            for c, label in enumerate(record.labels):
                rows.append(
                    {
                        "model": record.name,
                        "case": case.name,
                        "unit": case.unit,
                        "folds": folds,
                        "label": label,
                        "slices": len(case.indices),
                        **dict(zip(("tp", "fp", "fn", "tn"), counts[i, c].tolist(), strict=True)),
                        **{name: number(float(array[i, c])) for name, array in values.items()},
                    }
                )
    write_csv(path, rows)


def write_slices_csv(path: Path, records: list[Record], conventions: Conventions) -> None:
    """One line for each model, slice and class; distances lie in the slice's plane."""
    rows = []
    for record in records:
        values = {name: record.image_values(name, conventions) for name in _common(records)}
        places = [(case, j) for case in record.cases for j in range(len(case.indices))]
        for i, (case, j) in enumerate(places):
            for c, label in enumerate(record.labels):
                rows.append(
                    {
                        "model": record.name,
                        "case": case.name,
                        "slice": case.indices[j],
                        "fold": "" if case.folds is None else case.folds[j],
                        "label": label,
                        **dict(zip(("tp", "fp", "fn", "tn"), case.counts[j, c].tolist(), strict=True)),
                        **{n: number(float(a[i, c])) for n, a in values.items() if a is not None},
                    }
                )
    write_csv(path, rows)


def _common(records: list[Record]) -> list[str]:
    """The measures that every record has."""
    return [name for name in records[0].measures() if all(name in r.measures() for r in records)]


def _record(entry: dict[str, Any]) -> Record:
    labels = tuple(int(label) for label in entry["labels"])
    cases = []
    for case in entry["cases"]:
        n = len(case["indices"])
        counts = np.array(case["counts"], np.int64).reshape(n, len(labels), 4)
        if (counts < 0).any() or (counts.sum(-1) != case["pixels"]).any():
            raise ValueError(f"counts of {case['name']}")
        space = case["space"]
        if space is not None:
            space = Space(
                **{name: float(space[name]) for name in _SPACE},
                volume=_array(space["volume"]).reshape(len(labels), 3),
                slices=_array(space["slices"]).reshape(n, len(labels), 3),
            )
        folds = case["folds"]
        cases.append(
            Case(
                name=str(case["name"]),
                unit=str(case["unit"]),
                indices=tuple(int(index) for index in case["indices"]),
                folds=None if folds is None else tuple(int(fold) for fold in folds),
                labels=labels,
                pixels=int(case["pixels"]),
                counts=counts,
                space=space,
            )
        )
    if not (cases and labels):
        raise ValueError("no cases")
    return Record(str(entry["name"]), tuple(cases))


def _plain(values: np.ndarray) -> Any:
    """Nested lists with None for NaN."""
    return np.where(np.isnan(values), None, values).tolist()


def _array(values: Any) -> np.ndarray:
    return np.array(values, dtype=object).astype(np.float64) if values else np.empty(0)
