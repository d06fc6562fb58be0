"""An evaluation put together and written: everything in evaluation.json, tables and lists beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.comparison import compare
from asegnet_fast.evaluation.conventions import Conventions
from asegnet_fast.evaluation.record import Record
from asegnet_fast.evaluation.statistics import Bootstrap, holm
from asegnet_fast.evaluation.storage import FORMAT, record_json, write_cases_csv, write_slices_csv
from asegnet_fast.evaluation.summary import number, summarise
from asegnet_fast.evaluation.surface import TOLERANCE_MM
from asegnet_fast.evaluation.tables import markdown
from asegnet_fast.files import write_json, write_text


def evaluate_records(
    records: Sequence[Record],
    conventions: Conventions | None = None,
    options: Bootstrap | None = None,
    compared: Sequence[tuple[int, int]] = (),
    source: dict[str, Any] | None = None,
    measured: str = "",
    notes: Sequence[str] = (),
    tolerance: float = TOLERANCE_MM,
) -> dict[str, Any]:
    """Sum up records and compare them.

    Args:
        records: the models; the names differ.
        conventions: for empty masks.
        options: of the intervals.
        compared: pairs of positions in `records`, (first, second).
        source: what was evaluated, as JSON takes it.
        measured: a sentence that says which pixels were measured.
        notes: what the reader must be told.
        tolerance: with which surface_dice was measured, in millimetres.

    Returns:
        The content of evaluation.json: {"format", "source", "measured", "empty" and "empty_sentences" (the
        conventions), "bootstrap", "tolerance_mm", "records": [`record_json` with "summary"], "comparisons":
        [`compare`], "notes"}. With several comparisons every test has "p_holm", adjusted over them.

    Raises:
        ValueError: records that cannot be compared.
    """
    conventions, options = conventions or Conventions(), options or Bootstrap()
    names = [record.name for record in records]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--compare: expected models of different names, got {twice} twice")
    comparisons = [compare(records[i], records[j], conventions, options) for i, j in compared]
    _adjust(comparisons)
    return {
        "format": FORMAT,
        "source": source or {},
        "measured": measured,
        "empty": conventions.to_json(),
        "empty_sentences": conventions.sentences(any(record.has_space for record in records)),
        "bootstrap": asdict(options),
        "tolerance_mm": tolerance,
        "records": [
            {**record_json(record, conventions), "summary": summarise(record, conventions, options)}
            for record in records
        ],
        "comparisons": comparisons,
        "notes": list(notes),
    }


def write_evaluation(
    out: Path, evaluation: dict[str, Any], records: Sequence[Record], conventions: Conventions
) -> None:
    """Write evaluation.json, evaluation.md, cases.csv and slices.csv into a folder.

    Args:
        out: the folder; made where it is absent.
        evaluation: of `evaluate_records`.
        records, conventions: that it was made from.
    """
    out = Path(out)
    write_cases_csv(out / "cases.csv", list(records), conventions)
    write_slices_csv(out / "slices.csv", list(records), conventions)
    write_text(out / "evaluation.md", markdown(evaluation))
    write_json(out / "evaluation.json", evaluation)


def _adjust(comparisons: list[dict[str, Any]]) -> None:
    if len(comparisons) < 2:
        return
    for key in ("per_unit", "per_fold"):
        for name in comparisons[0]["measures"]:
            tests = [c["measures"][name][key] for c in comparisons if key in c["measures"].get(name, {})]
            given = [float("nan") if test["p_value"] is None else test["p_value"] for test in tests]
            for test, adjusted in zip(tests, holm(given), strict=True):
                test["p_holm"] = number(adjusted)
