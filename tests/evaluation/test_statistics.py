"""Intervals and tests against scipy's own, against numbers worked out by hand, and in what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.overlap import dice
from asegnet_fast.evaluation.statistics import (
    Bootstrap,
    bootstrap,
    holm,
    mean_interval,
    paired_test,
    pooled_difference,
    pooled_interval,
    unit_means,
)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_a_mean_with_one_value_a_unit_is_scipys_bootstrap(method):
    values = np.random.default_rng(0).normal(5, 2, 30)
    options = Bootstrap(method=method, seed=7)
    ours = mean_interval(values, range(30), options)
    theirs = stats.bootstrap(
        (np.arange(30),),
        lambda chosen, axis: values[chosen].mean(-1),
        n_resamples=options.resamples,
        batch=500,
        vectorized=True,
        method={"bca": "BCa", "percentile": "percentile"}[method],
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    # Another size of batches draws the same numbers in another order, so the ends agree to a few percent.
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert ours.method == method


def test_whole_units_are_resampled():
    """Ten copies of each patient's value are no new information: the interval stays as wide."""
    values = np.random.default_rng(1).normal(0, 1, 20)
    units = np.arange(20)
    once = mean_interval(values, units)
    copies = mean_interval(np.repeat(values, 10), np.repeat(units, 10))
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    as_if_independent = mean_interval(np.repeat(values, 10), range(200))
    assert as_if_independent.high - as_if_independent.low < 0.5 * (once.high - once.low)


def test_coverage_is_near_the_level():
    """Of 200 samples of 40 normal values, about 95 % of the intervals hold the true mean 0."""
    rng = np.random.default_rng(2)
    options = Bootstrap(resamples=500)
    held = 0
    for _ in range(200):
        interval = mean_interval(rng.normal(0, 1, 40), range(40), options)
        held += interval.low <= 0 <= interval.high
    assert 175 <= held <= 199


def test_the_seed_decides():
    values = np.random.default_rng(3).normal(0, 1, 12)
    assert mean_interval(values, range(12)) == mean_interval(values, range(12))
    other = mean_interval(values, range(12), Bootstrap(seed=1))
    assert other.low != mean_interval(values, range(12)).low


def test_undefined_values_are_left_out():
    interval = mean_interval([1.0, math.nan, 3.0, math.nan], ["a", "a", "b", "c"])
    assert interval.value == 2 and interval.units == 2
    assert 1 <= interval.low <= interval.high <= 3
    nothing = mean_interval([math.nan, math.nan], "ab")
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and nothing.units == 0


def test_one_unit_has_no_interval_and_equal_units_have_none_wide():
    one = mean_interval([0.5, 0.7], ["a", "a"])
    assert one.value == pytest.approx(0.6) and math.isnan(one.low) and math.isnan(one.high)
    same = mean_interval([0.25, 0.25, 0.25], "abc")
    assert (same.low, same.high, same.method) == (0.25, 0.25, "percentile")


def test_an_infinite_distance_makes_an_infinite_mean():
    interval = mean_interval([1.0, 2.0, math.inf], "abc")
    assert interval.value == interval.high == math.inf
    assert interval.low <= 2


def test_classes_are_averaged_last():
    values = np.array([[1.0, math.nan], [3.0, 10.0]])
    assert mean_interval(values, "ab").value == (2 + 10) / 2


def test_pooled_dice():
    counts = np.array([[1, 1, 1, 1], [0, 0, 0, 4], [3, 1, 1, 5]])
    interval = pooled_interval(counts, "abc", dice)
    assert interval.value == pytest.approx(8 / 12)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    two_classes = pooled_interval(np.stack([counts, counts[:, [0, 2, 1, 3]]], axis=1), "abc", dice)
    assert two_classes.value == pytest.approx(8 / 12)


def test_a_paired_difference_is_narrower_than_the_models_own_intervals():
    rng = np.random.default_rng(4)
    size = rng.integers(50, 500, 25)
    good = np.stack([size, size // 5, size // 5, 10_000 - size], axis=1)
    better = good - np.array([0, 5, 5, 0])
    difference = pooled_difference(better, good, range(25), dice)
    assert difference.value == pytest.approx(dice(better.sum(0)) - dice(good.sum(0)))
    assert 0 < difference.low < difference.value < difference.high
    assert pooled_difference(good, good, range(25), dice).high == 0


def test_paired_test_by_hand():
    test = paired_test([0.8, 0.9, 0.6, 0.7, 0.5], [0.7, 0.6, 0.65, 0.5, 0.5])
    # Differences .1, .3, -.05, .2, 0: ranks 2, 4, -1, 3.
    assert (test.pairs, test.wins, test.ties, test.losses, test.left_out) == (5, 3, 1, 1, 0)
    assert test.difference.value == pytest.approx(0.11)
    assert test.median_difference == pytest.approx(0.1)
    assert test.rank_biserial == pytest.approx((2 + 4 + 3 - 1) / 10)
    # W = 1 of 16 sign patterns: 2 * (1 + 1) / 16.
    assert test.p_value == pytest.approx(0.25)
    assert test.smallest_p == 2 / 16
    assert test.cohen_dz == pytest.approx(0.11 / np.std([0.1, 0.3, -0.05, 0.2, 0], ddof=1))


def test_paired_test_agrees_with_scipy():
    rng = np.random.default_rng(5)
    first, second = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    assert paired_test(first, second).p_value == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_equal_models():
    values = np.random.default_rng(6).random(8)
    test = paired_test(values, values + 1e-15)
    assert (test.p_value, test.ties, test.rank_biserial) == (1, 8, 0)
    assert (test.difference.low, test.difference.high) == (0, 0)
    assert math.isnan(test.cohen_dz)


def test_pairs_without_a_value_are_left_out():
    test = paired_test([1.0, math.nan, math.inf, math.inf], [0.5, 1.0, 2.0, math.inf])
    assert (test.pairs, test.left_out, test.wins, test.ties) == (3, 1, 2, 1)
    nothing = paired_test([math.nan], [1.0])
    assert nothing.pairs == 0 and math.isnan(nothing.p_value) and math.isnan(nothing.difference.value)


def test_five_folds_cannot_reach_five_percent():
    test = paired_test([0.9, 0.8, 0.85, 0.7, 0.95], [0.5, 0.3, 0.2, 0.1, 0.6])
    assert test.p_value == test.smallest_p == 2 / 2**5


def test_unit_means():
    names, means = unit_means([1.0, 3.0, math.nan, 5.0, math.nan], ["b", "b", "a", "a", "c"])
    assert names == ["b", "a", "c"]
    assert means.tolist()[:2] == [2, 5] and math.isnan(means[2])


def test_holm():
    # 0.01 * 4, 0.02 * 3, then never below the one before: 0.03 * 2 and 0.04 * 1 stay at 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[0] == 1 and math.isnan(holm([0.5, math.nan, 0.9])[1])


@pytest.mark.parametrize(
    "wrong", [{"resamples": 10}, {"level": 1.0}, {"method": "t"}, {"seed": -1}], ids=lambda w: next(iter(w))
)
def test_wrong_options(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Bootstrap(**wrong)


def test_wrong_shapes():
    with pytest.raises(ValueError, match="units: expected 3"):
        mean_interval([1.0, 2.0, 3.0], "ab")
    with pytest.raises(ValueError, match="second: expected as many"):
        paired_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="counts: expected"):
        pooled_interval(np.ones((3, 5)), "abc", dice)
    assert bootstrap(lambda chosen: chosen.mean(-1), 5).value == 2
