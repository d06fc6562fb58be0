"""A run's averages against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from asegnet_fast.evaluation.overlap import pixel_counts
from asegnet_fast.training.metrics import constant_counts, summarise, trivial


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


def test_an_undefined_mean_is_none():
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
