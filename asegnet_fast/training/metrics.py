"""A run's summary of Dice, sensitivity and specificity, and the floor under it.

The measures, and what they are where nothing is there, are those of `asegnet_fast.evaluation.overlap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asegnet_fast.evaluation.overlap import PAPER_MEASURES


def summarise(folds: Sequence[np.ndarray]) -> dict[str, Any]:
    """Every measure in every way of averaging, over the test images of the folds.

    `pooled` is the measure of all counts added up; `per_image_mean` the mean of the images' measures;
    `per_fold_mean` and `per_fold_sd` are mean and standard deviation (n - 1) of the folds' pooled measures.
    With several lesion classes each number is the mean over them, and `classes` lists each by itself.

    Args:
        folds: one array [images, lesion classes, 4] for each fold.

    Returns:
        {"dice": {"pooled", "per_image_mean", "per_fold_mean", "per_fold_sd"}, "sensitivity": {...},
        "specificity": {...}}, with "classes": [the same for each class] where there are several; None stands
        for a number that is undefined.
    """
    images = np.concatenate(list(folds))
    pooled = images.sum(0)
    fold_pooled = np.stack([fold.sum(0) for fold in folds])
    summary: dict[str, Any] = {}
    for name, measure in PAPER_MEASURES.items():
        summary[name] = _averages(measure(pooled), measure(images), measure(fold_pooled))
    if images.shape[1] > 1:
        summary["classes"] = [
            summarise([fold[:, c : c + 1] for fold in folds]) for c in range(images.shape[1])
        ]
    return summary


def constant_counts(counts: np.ndarray, label: int) -> np.ndarray:
    """Counts of the predictor that answers `label` for every pixel, from any predictor's counts on those images.

    Args:
        counts: [N, lesion classes, 4]; only TP + FN (truth) and FP + TN (the rest) of each are used.
        label: the constant answer, 0 (background) to the number of lesion classes.

    Returns:
        int64 [N, lesion classes, 4].
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts), -1, 0)
    constant = np.zeros_like(counts)
    for c in range(counts.shape[1]):
        hit, miss = (0, 1) if c + 1 == label else (2, 3)
        constant[:, c, hit] = (tp + fn)[:, c]
        constant[:, c, miss] = (fp + tn)[:, c]
    return constant


def trivial(folds: Sequence[np.ndarray]) -> dict[str, Any]:
    """The floor under every score: predictors that look at no image.

    Args:
        folds: any predictor's counts, one array [images, lesion classes, 4] for each fold.

    Returns:
        {"lesion_everywhere": the measures of answering lesion for every pixel (of several lesion labels the one
        with the highest pooled Dice), "best_constant": the same with the background among the labels}, each with
        its "label", 0..lesion classes.
    """
    scored = [
        {"label": label, **summarise([constant_counts(fold, label) for fold in folds])}
        for label in range(folds[0].shape[1] + 1)
    ]
    return {
        "lesion_everywhere": max(scored[1:], key=lambda entry: entry["dice"]["pooled"]),
        "best_constant": max(scored, key=lambda entry: entry["dice"]["pooled"]),
    }


def _averages(pooled: np.ndarray, images: np.ndarray, folds: np.ndarray) -> dict[str, float | None]:
    """pooled [classes], images [n, classes], folds [k, classes] -> the four averages, classes averaged last."""
    by_fold = np.array([_mean(fold) for fold in folds])
    by_fold = by_fold[~np.isnan(by_fold)]
    return {
        "pooled": _number(_mean(pooled)),
        "per_image_mean": _number(_mean(np.array([_mean(images[:, c]) for c in range(images.shape[1])]))),
        "per_fold_mean": _number(_mean(by_fold)),
        "per_fold_sd": _number(float(np.std(by_fold, ddof=1)) if by_fold.size > 1 else np.nan),
    }


def _mean(values: np.ndarray) -> float:
    """The mean of the defined values; NaN where there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
