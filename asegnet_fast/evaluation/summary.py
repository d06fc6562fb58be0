"""Every measure of a record in every way of averaging, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from asegnet_fast.evaluation.conventions import Conventions
from asegnet_fast.evaluation.overlap import MEASURES
from asegnet_fast.evaluation.record import VOLUMES, Record
from asegnet_fast.evaluation.statistics import (
    Bootstrap,
    Interval,
    bootstrap,
    class_mean,
    mean_interval,
    pooled_interval,
    unit_sums,
)

#: Measure -> its unit; shares are in 0..1.
UNITS = (
    dict.fromkeys((*MEASURES, "surface_dice"), "1")
    | dict.fromkeys(("hd95", "assd"), "mm")
    | {name: "percent" if name.endswith("percent") else "ml" for name in VOLUMES}
)
AVERAGES = ("pooled", "per_image_mean", "per_volume_mean", "per_fold_mean")


def summarise(record: Record, conventions: Conventions, options: Bootstrap) -> dict[str, Any]:
    """Average a record.

    `pooled` is the measure of all counts added up; `per_image_mean` and `per_volume_mean` are means over slices and
    over cases; `per_fold_mean` is the mean of the folds' values (of overlap pooled, of distances the mean over the
    fold's cases). Distances of an image lie in its plane, those of a volume in space. With several classes each
    number is the mean over them, and `classes` lists each by itself.

    Args:
        record: the cases.
        conventions: for empty masks.
        options: of the intervals.

    Returns:
        {"measures": {measure: {"unit", average: {"value", "low", "high", "units", "method", "values",
        "undefined"}}}}; `values` is how many slices, cases or folds went in, `undefined` how many had no value.
        Means of a single class also have "sd" (n - 1) and "median". With "classes": [{"label", "measures"}] where
        there are several. None stands for an undefined number, "inf" for an infinite one.
    """
    several = len(record.labels) > 1
    summary: dict[str, Any] = {"measures": _measures(record, conventions, options, slice(None))}
    if several:
        summary["classes"] = [
            {"label": label, "measures": _measures(record, conventions, options, slice(c, c + 1))}
            for c, label in enumerate(record.labels)
        ]
    return summary


def unit_values(record: Record, name: str, conventions: Conventions) -> tuple[list, np.ndarray]:
    """One value of a measure for each independent unit, classes averaged.

    Args:
        record: the cases.
        name: of the measure.
        conventions: for empty masks.

    Returns:
        (the units, float64 [units]): overlap pooled over the unit's slices, other measures the mean over its cases.
    """
    if name in MEASURES:
        units, sums = unit_sums(record.counts(), record.units())
        return units, class_mean(conventions.overlap(name)(sums))
    values = record.values(name, conventions)
    defined = ~np.isnan(values)
    units, sums = unit_sums(np.where(defined, values, 0), record.units())
    numbers = unit_sums(defined, record.units())[1]
    return units, class_mean(np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan))


def fold_values(record: Record, name: str, conventions: Conventions) -> tuple[list[int], np.ndarray]:
    """One value of a measure of overlap for each fold, pooled over its slices, classes averaged.

    Returns:
        (the folds, float64 [folds]).
    """
    folds, sums = unit_sums(record.image_counts(), record.image_folds().tolist())
    order = np.argsort(folds)
    return [folds[i] for i in order], class_mean(conventions.overlap(name)(sums[order]))


def interval_json(interval: Interval) -> dict[str, Any]:
    """An interval with None for NaN and "inf" for an infinity."""
    return {name: number(value) for name, value in vars(interval).items()}


def number(value: Any) -> Any:
    """A number as JSON takes it: None for NaN, "inf" and "-inf", ten significant digits."""
    if not isinstance(value, (float, np.floating)):
        return value
    if math.isnan(value):
        return None
    return float(f"{value:.10g}") if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _measures(record: Record, conventions: Conventions, options: Bootstrap, classes: slice) -> dict[str, Any]:
    units, image_units = record.units(), record.image_units()
    result: dict[str, Any] = {}
    for name in record.measures():
        entry: dict[str, Any] = {"unit": UNITS[name]}
        if name in MEASURES:
            measure, counts = conventions.overlap(name), record.counts()[:, classes]
            entry["pooled"] = interval_json(pooled_interval(counts, units, measure, options))
        images = record.image_values(name, conventions)
        if images is not None:
            entry["per_image_mean"] = _mean(images[:, classes], image_units, options)
        entry["per_volume_mean"] = _mean(record.values(name, conventions)[:, classes], units, options)
        if name in MEASURES and record.image_folds() is not None:
            entry["per_fold_mean"] = _fold_mean(record, measure, classes, options)
        result[name] = entry
    return result


def _mean(values: np.ndarray, units: list, options: Bootstrap) -> dict[str, Any]:
    entry = interval_json(mean_interval(values, units, options))
    entry |= {"values": values.size, "undefined": int(np.isnan(values).sum())}
    if values.shape[1] == 1:
        known = values[~np.isnan(values)]
        spread = math.nan
        if known.size > 1 and np.isfinite(known).all():
            spread = float(known.std(ddof=1))
        entry |= {"sd": number(spread), "median": number(float(np.median(known)) if known.size else math.nan)}
    return entry


def _fold_mean(
    record: Record, measure: Callable[[np.ndarray], np.ndarray], classes: slice, options: Bootstrap
) -> dict[str, Any]:
    """Mean and spread of the folds' pooled measures; the interval resamples units and pools them fold by fold."""
    counts, folds = record.image_counts()[:, classes], record.image_folds()
    numbers = sorted(set(folds.tolist()))
    by_fold = np.stack([np.where((folds == fold)[:, None, None], counts, 0) for fold in numbers], axis=1)
    _, sums = unit_sums(by_fold, record.image_units())

    def scores(chosen: np.ndarray) -> np.ndarray:
        pooled = sums[chosen].sum(-4)
        # A fold of which nothing was drawn has no value.
        return np.where(pooled.sum((-1, -2)) > 0, class_mean(measure(pooled)), np.nan)

    each = scores(np.arange(len(sums)))
    known = each[~np.isnan(each)]
    entry = interval_json(bootstrap(lambda chosen: class_mean(scores(chosen)), len(sums), options))
    return entry | {
        "values": len(each),
        "undefined": len(each) - len(known),
        "sd": number(float(known.std(ddof=1)) if known.size > 1 else math.nan),
        "folds": [number(float(value)) for value in each],
    }
