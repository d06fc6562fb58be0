"""Measures of overlap from pixel counts (Budak et al. 2021, Eq. 10 to 12, and the two beside them).

A row of counts is (TP, FP, FN, TN) of one lesion class in one image, one volume, or many pooled. What a ratio 0/0
stands for is the argument `empty` of each measure. By default Dice and IoU are 1 when truth and prediction are both
empty; sensitivity is undefined (NaN) without lesion pixels, specificity without background pixels and precision
without predicted pixels, and undefined values are left out of every mean.
"""

from __future__ import annotations

from collections.abc import Callable

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


def dice(counts: np.ndarray, empty: float = 1.0) -> np.ndarray:
    """Dice = 2 TP / (2 TP + FP + FN) (Budak et al. 2021, Eq. 10).

    Args:
        counts: [..., 4], TP, FP, FN, TN.
        empty: the value where that is 0/0: nothing in truth and prediction.

    Returns:
        float64 [...], in 0..1, or `empty`.
    """
    tp, fp, fn, _ = _parts(counts)
    return _ratio(2 * tp, 2 * tp + fp + fn, empty)


def iou(counts: np.ndarray, empty: float = 1.0) -> np.ndarray:
    """Intersection over union (Jaccard index) = TP / (TP + FP + FN).

    Args:
        counts: [..., 4], TP, FP, FN, TN.
        empty: the value where that is 0/0: nothing in truth and prediction.

    Returns:
        float64 [...], in 0..1, or `empty`.
    """
    tp, fp, fn, _ = _parts(counts)
    return _ratio(tp, tp + fp + fn, empty)


def sensitivity(counts: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Sensitivity (recall) = TP / (TP + FN) (Budak et al. 2021, Eq. 11).

    Args:
        counts: [..., 4], TP, FP, FN, TN.
        empty: the value where that is 0/0: nothing in truth.

    Returns:
        float64 [...], in 0..1, or `empty`.
    """
    tp, _, fn, _ = _parts(counts)
    return _ratio(tp, tp + fn, empty)


def specificity(counts: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Specificity = TN / (TN + FP) (Budak et al. 2021, Eq. 12).

    Args:
        counts: [..., 4], TP, FP, FN, TN.
        empty: the value where that is 0/0: no background in truth.

    Returns:
        float64 [...], in 0..1, or `empty`.
    """
    _, fp, _, tn = _parts(counts)
    return _ratio(tn, tn + fp, empty)


def precision(counts: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Precision (positive predictive value) = TP / (TP + FP).

    Args:
        counts: [..., 4], TP, FP, FN, TN.
        empty: the value where that is 0/0: nothing in the prediction.

    Returns:
        float64 [...], in 0..1, or `empty`.
    """
    tp, fp, _, _ = _parts(counts)
    return _ratio(tp, tp + fp, empty)


#: The measures that the paper reports.
PAPER_MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "dice": dice,
    "sensitivity": sensitivity,
    "specificity": specificity,
}
MEASURES: dict[str, Callable[..., np.ndarray]] = PAPER_MEASURES | {"precision": precision, "iou": iou}


def _parts(counts: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), empty)
