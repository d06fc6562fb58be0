"""Two models on the same cases: differences, their intervals, and paired tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.conventions import Conventions
from asegnet_fast.evaluation.overlap import MEASURES
from asegnet_fast.evaluation.record import Record
from asegnet_fast.evaluation.statistics import Bootstrap, PairedTest, paired_test, pooled_difference
from asegnet_fast.evaluation.summary import UNITS, fold_values, interval_json, number, unit_values

#: What is compared: the truth's volume is the same for both.
_NOT_COMPARED = ("truth_volume", "predicted_volume", "volume_error", "volume_error_percent")


def compare(first: Record, second: Record, conventions: Conventions, options: Bootstrap) -> dict[str, Any]:
    """Compare two models that were measured on the same cases.

    Args:
        first, second: the models.
        conventions: for empty masks.
        options: of the intervals.

    Returns:
        {"first", "second", "measures": {measure: {"unit", "pooled_difference": interval, "per_unit": test,
        "per_fold": test}}}. Every difference is first - second. `per_unit` pairs patients (or volumes), `per_fold`
        pairs folds, which only measures of overlap with folds have; a test has the fields of `PairedTest`.

    Raises:
        ValueError: other cases, other slices or another truth.
    """
    second = _matched(first, second)
    units = first.units()
    measures: dict[str, Any] = {}
    for name in first.measures():
        if name in _NOT_COMPARED or name not in second.measures():
            continue
        entry: dict[str, Any] = {"unit": UNITS[name]}
        if name in MEASURES:
            difference = pooled_difference(
                first.counts(), second.counts(), units, conventions.overlap(name), options
            )
            entry["pooled_difference"] = interval_json(difference)
        pair = [unit_values(record, name, conventions)[1] for record in (first, second)]
        entry["per_unit"] = paired_json(paired_test(*pair, options))
        if name in MEASURES and first.image_folds() is not None:
            pair = [fold_values(record, name, conventions)[1] for record in (first, second)]
            entry["per_fold"] = paired_json(paired_test(*pair, options))
        measures[name] = entry
    return {"first": first.name, "second": second.name, "measures": measures}


def paired_json(test: PairedTest) -> dict[str, Any]:
    """A paired test as JSON takes it."""
    return {key: number(value) for key, value in vars(test).items()} | {
        "difference": interval_json(test.difference)
    }


def _matched(first: Record, second: Record) -> Record:
    """The second record in the order of the first, once it is known to be of the same slices and truth."""

    def refuse(what: str, expected: Any, got: Any) -> None:
        raise InputError(f"--compare: expected {what} of {first.name}, {expected}, got {got} ({second.name})")

    if first.labels != second.labels:
        refuse("the labels", ", ".join(map(str, first.labels)), ", ".join(map(str, second.labels)))
    theirs = {case.name: case for case in second.cases}
    ours = [case.name for case in first.cases]
    if set(ours) != set(theirs):
        missing, more = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        refuse(
            "the cases", f"{len(ours)} of them", f"{missing[0]} missing" if missing else f"{more[0]} as well"
        )
    cases = [theirs[name] for name in ours]
    for case, other in zip(first.cases, cases, strict=True):
        if (case.indices, case.unit, case.folds) != (other.indices, other.unit, other.folds):
            refuse(
                "the slices", f"{len(case.indices)} in {case.name}", "others, or in other folds or patients"
            )
        truth, other_truth = (c.counts[..., [0, 2]].sum(-1) for c in (case, other))
        if not np.array_equal(truth, other_truth) or case.pixels != other.pixels:
            refuse("the truth", f"the same pixels in {case.name}", "another truth")
    return Record(second.name, tuple(cases))
