"""Pixel counts and measures against numbers worked out by hand and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from asegnet_fast.evaluation.overlap import (
    MEASURES,
    dice,
    iou,
    pixel_counts,
    precision,
    sensitivity,
    specificity,
)


def test_hand_computed_image():
    target = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]]], dtype=torch.uint8)
    prediction = torch.tensor([[[1, 0, 1, 0], [1, 0, 0, 0]]])
    counts = pixel_counts(prediction, target, 2).numpy()
    assert counts.tolist() == [[[2, 1, 1, 4]]]
    expected = {"dice": 4 / 6, "iou": 2 / 4, "sensitivity": 2 / 3, "specificity": 4 / 5, "precision": 2 / 3}
    assert {name: measure(counts)[0, 0] for name, measure in MEASURES.items()} == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_counts_agree_with_scikit_learn(classes):
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, classes, (5, 7, 9), generator=generator, dtype=torch.uint8)
    prediction = torch.randint(0, classes, (5, 7, 9), generator=generator)
    counts = pixel_counts(prediction, target, classes).numpy()
    for image in range(5):
        matrix = metrics.confusion_matrix(
            target[image].flatten(), prediction[image].flatten(), labels=range(classes)
        )
        for c in range(1, classes):
            tp = matrix[c, c]
            fp, fn = matrix[:, c].sum() - tp, matrix[c].sum() - tp
            assert counts[image, c - 1].tolist() == [tp, fp, fn, matrix.sum() - tp - fp - fn]


def test_measures_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 2, (6, 8, 5), generator=generator)
    prediction = torch.randint(0, 2, (6, 8, 5), generator=generator)
    counts = pixel_counts(prediction, target, 2).numpy().sum(0)[0]
    truth, answer = target.flatten(), prediction.flatten()
    assert dice(counts) == pytest.approx(metrics.f1_score(truth, answer))
    assert iou(counts) == pytest.approx(metrics.jaccard_score(truth, answer))
    assert sensitivity(counts) == pytest.approx(metrics.recall_score(truth, answer))
    assert specificity(counts) == pytest.approx(metrics.recall_score(truth, answer, pos_label=0))
    assert precision(counts) == pytest.approx(metrics.precision_score(truth, answer))


def test_ratios_of_nothing():
    empty, full = np.array([0, 0, 0, 9]), np.array([9, 0, 0, 0])
    assert dice(empty) == iou(empty) == specificity(empty) == 1
    assert np.isnan([sensitivity(empty), precision(empty), specificity(full)]).all()
    assert np.isnan(dice(empty, empty=np.nan)) and iou(empty, empty=0) == 0
    assert sensitivity(empty, empty=1) == precision(empty, empty=1) == specificity(full, empty=1) == 1
    # A missed lesion is no empty case, whatever the convention.
    assert dice(np.array([0, 0, 3, 6]), empty=np.nan) == sensitivity(np.array([0, 0, 3, 6]), empty=1) == 0
