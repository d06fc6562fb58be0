"""Evaluation of segmentations: overlap, surface distances, volumes, and the statistics over them."""

from asegnet_fast.evaluation.overlap import dice, iou, pixel_counts, precision, sensitivity, specificity
from asegnet_fast.evaluation.statistics import (
    Bootstrap,
    Interval,
    PairedTest,
    bootstrap,
    holm,
    mean_interval,
    paired_test,
    pooled_difference,
    pooled_interval,
    unit_means,
)

__all__ = [
    "Bootstrap",
    "Interval",
    "PairedTest",
    "bootstrap",
    "dice",
    "holm",
    "iou",
    "mean_interval",
    "paired_test",
    "pixel_counts",
    "pooled_difference",
    "pooled_interval",
    "precision",
    "sensitivity",
    "specificity",
    "unit_means",
]
