"""Evaluation of segmentations: overlap, surface distances and volumes, and the statistics over them.

Masks of any tool, in short:

    records = [gather("ours", measure_masks(match_masks(truth_folder, predictions_folder)))]
    write_evaluation(out, evaluate_records(records), records, Conventions())
"""

from asegnet_fast.evaluation.cases import Case, Space, measure_case
from asegnet_fast.evaluation.comparison import compare
from asegnet_fast.evaluation.conventions import Conventions
from asegnet_fast.evaluation.masks import match_masks, measure_masks
from asegnet_fast.evaluation.overlap import dice, iou, pixel_counts, precision, sensitivity, specificity
from asegnet_fast.evaluation.record import Record, gather
from asegnet_fast.evaluation.report import evaluate_records, write_evaluation
from asegnet_fast.evaluation.runs import fold_slices, run_record
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
from asegnet_fast.evaluation.storage import read_records
from asegnet_fast.evaluation.summary import summarise
from asegnet_fast.evaluation.surface import SurfaceDistances, slice_surface_distances, surface_distances
from asegnet_fast.evaluation.volumes import belongs_to_run, measure_volumes

__all__ = [
    "Bootstrap",
    "Case",
    "Conventions",
    "Interval",
    "PairedTest",
    "Record",
    "Space",
    "SurfaceDistances",
    "belongs_to_run",
    "bootstrap",
    "compare",
    "dice",
    "evaluate_records",
    "fold_slices",
    "gather",
    "holm",
    "iou",
    "match_masks",
    "mean_interval",
    "measure_case",
    "measure_masks",
    "measure_volumes",
    "paired_test",
    "pixel_counts",
    "pooled_difference",
    "pooled_interval",
    "precision",
    "read_records",
    "run_record",
    "sensitivity",
    "slice_surface_distances",
    "specificity",
    "summarise",
    "surface_distances",
    "unit_means",
    "write_evaluation",
]
