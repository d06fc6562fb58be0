"""Dice, sensitivity and specificity from pixel counts (Budak et al. 2021, Eq. 10 to 12).

A row of counts is (TP, FP, FN, TN) of one lesion class in one image. A ratio 0/0 is settled thus:
Dice is 1 when truth and prediction are both empty; sensitivity is undefined (NaN) in an image without lesion
pixels and specificity in one without background pixels, and undefined values are left out of every mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pixel_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count TP, FP, FN, TN per image and lesion class (every class but 0).

    Args:
        prediction: [N, H, W], integer labels in 0..num_classes-1.
        target: [N, H, W], integer labels in 0..num_classes-1.
        num_classes: classes with the background, >= 2.

    Returns:
        int64 [N, num_classes - 1, 4] on the inputs' device.
    """
    n = target.shape[0]
    cells = num_classes * num_classes
    index = target.reshape(n, -1).long() * num_classes + prediction.reshape(n, -1).long()
    index = index + cells * torch.arange(n, device=index.device)[:, None]
    matrix = torch.bincount(index.reshape(-1), minlength=n * cells).reshape(n, num_classes, num_classes)
    tp = matrix.diagonal(dim1=1, dim2=2)
    fp = matrix.sum(1) - tp
    fn = matrix.sum(2) - tp
    tn = matrix.sum((1, 2))[:, None] - tp - fp - fn
    return torch.stack([tp, fp, fn, tn], dim=-1)[:, 1:]


def dice(counts: np.ndarray) -> np.ndarray:
    """Dice = 2 TP / (2 TP + FP + FN), and 1 where that is 0/0 (Budak et al. 2021, Eq. 10).

    Args:
        counts: [..., 4], TP, FP, FN, TN.

    Returns:
        float64 [...], in 0..1.
    """
    tp, fp, fn, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    total = 2 * tp + fp + fn
    return np.where(total > 0, 2 * tp / np.where(total > 0, total, 1), 1.0)


def sensitivity(counts: np.ndarray) -> np.ndarray:
    """Sensitivity = TP / (TP + FN), and NaN where that is 0/0 (Budak et al. 2021, Eq. 11).

    Args:
        counts: [..., 4], TP, FP, FN, TN.

    Returns:
        float64 [...], in 0..1 or NaN.
    """
    tp, _, fn, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return np.where(tp + fn > 0, tp / np.where(tp + fn > 0, tp + fn, 1), np.nan)


def specificity(counts: np.ndarray) -> np.ndarray:
    """Specificity = TN / (TN + FP), and NaN where that is 0/0 (Budak et al. 2021, Eq. 12).

    Args:
        counts: [..., 4], TP, FP, FN, TN.

    Returns:
        float64 [...], in 0..1 or NaN.
    """
    _, fp, _, tn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return np.where(tn + fp > 0, tn / np.where(tn + fp > 0, tn + fp, 1), np.nan)


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dice": dice,
    "sensitivity": sensitivity,
    "specificity": specificity,
}


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
    for name, measure in MEASURES.items():
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
