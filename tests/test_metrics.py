"""Metrics against numbers worked out by hand and against scikit-learn's confusion matrix."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from asegnet_fast.training.metrics import (
    constant_counts,
    dice,
    pixel_counts,
    sensitivity,
    specificity,
    summarise,
    trivial,
)


def test_hand_computed_image():
    target = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]]], dtype=torch.uint8)
    prediction = torch.tensor([[[1, 0, 1, 0], [1, 0, 0, 0]]])
    counts = pixel_counts(prediction, target, 2).numpy()
    assert counts.tolist() == [[[2, 1, 1, 4]]]
    assert dice(counts)[0, 0] == pytest.approx(4 / 6)
    assert sensitivity(counts)[0, 0] == pytest.approx(2 / 3)
    assert specificity(counts)[0, 0] == pytest.approx(4 / 5)


@pytest.mark.parametrize("classes", [2, 4])
def test_counts_agree_with_scikit_learn(classes):
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, classes, (5, 7, 9), generator=generator, dtype=torch.uint8)
    prediction = torch.randint(0, classes, (5, 7, 9), generator=generator)
    counts = pixel_counts(prediction, target, classes).numpy()
    for image in range(5):
        matrix = confusion_matrix(target[image].flatten(), prediction[image].flatten(), labels=range(classes))
        for c in range(1, classes):
            tp = matrix[c, c]
            fp, fn = matrix[:, c].sum() - tp, matrix[c].sum() - tp
            assert counts[image, c - 1].tolist() == [tp, fp, fn, matrix.sum() - tp - fp - fn]


def test_pooled_scores_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 2, (6, 8, 5), generator=generator)
    prediction = torch.randint(0, 2, (6, 8, 5), generator=generator)
    counts = pixel_counts(prediction, target, 2).numpy()
    tn, fp, fn, tp = confusion_matrix(target.flatten(), prediction.flatten()).ravel()
    summary = summarise([counts[:2], counts[2:]])
    assert summary["dice"]["pooled"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)
    assert summary["sensitivity"]["pooled"] == pytest.approx(tp / (tp + fn), abs=1e-6)
    assert summary["specificity"]["pooled"] == pytest.approx(tn / (tn + fp), abs=1e-6)


def test_averages_by_hand():
    # Fold 1 holds Dice 1/2 and an empty image predicted empty (1), fold 2 Dice 2*3/(6+1+1) = 3/4.
    folds = [np.array([[[1, 1, 1, 1]], [[0, 0, 0, 4]]]), np.array([[[3, 1, 1, 5]]])]
    scores = summarise(folds)
    assert scores["dice"] == {
        "pooled": pytest.approx(8 / 12, abs=1e-6),
        "per_image_mean": pytest.approx((0.5 + 1 + 0.75) / 3, abs=1e-6),
        "per_fold_mean": pytest.approx((0.5 + 0.75) / 2, abs=1e-6),
        "per_fold_sd": pytest.approx(0.25 / 2**0.5, abs=1e-6),
    }
    # The empty image has no sensitivity and stays out of the mean.
    assert scores["sensitivity"]["per_image_mean"] == pytest.approx((1 / 2 + 3 / 4) / 2, abs=1e-6)
    assert "classes" not in scores


def test_ratios_of_nothing():
    empty = np.array([0, 0, 0, 9])
    assert dice(empty) == 1
    assert np.isnan(sensitivity(empty))
    assert specificity(empty) == 1
    full = np.array([9, 0, 0, 0])
    assert np.isnan(specificity(full))
    scores = summarise([np.array([[[0, 0, 0, 9]]])])
    assert scores["sensitivity"] == dict.fromkeys(
        ("pooled", "per_image_mean", "per_fold_mean", "per_fold_sd")
    )


def test_several_classes_are_averaged_last():
    first, second = np.array([[[2, 0, 0, 6]]]), np.array([[[1, 2, 2, 3]]])
    scores = summarise([np.concatenate([first, second], axis=1)])
    assert [entry["dice"]["pooled"] for entry in scores["classes"]] == pytest.approx([1, 1 / 3], abs=1e-6)
    assert scores["dice"]["pooled"] == pytest.approx(2 / 3, abs=1e-6)


def test_constant_predictors_equal_counting_them():
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, 3, (4, 6, 5), generator=generator)
    some = pixel_counts(torch.randint(0, 3, target.shape, generator=generator), target, 3).numpy()
    for label in range(3):
        expected = pixel_counts(torch.full_like(target, label), target, 3).numpy()
        assert np.array_equal(constant_counts(some, label), expected)


def test_trivial_floor():
    # 2 lesion pixels of 10: lesion everywhere has Dice 4 / 12; background everywhere 0.
    floor = trivial([np.array([[[1, 3, 1, 5]]])])
    assert floor["lesion_everywhere"]["label"] == floor["best_constant"]["label"] == 1
    assert floor["lesion_everywhere"]["dice"]["pooled"] == pytest.approx(1 / 3, abs=1e-6)
    assert floor["lesion_everywhere"]["sensitivity"]["pooled"] == 1
    # Without any lesion pixel the best constant is the background.
    assert trivial([np.array([[[0, 3, 0, 5]]])])["best_constant"]["label"] == 0
