"""Bootstrap intervals and paired tests over independent units.

Slices of one patient are alike, so they are no independent samples. Every value comes with its unit (the patient, or
the volume where no patient is known), and whole units are resampled or ranked: the cluster bootstrap. One seed gives
the same resamples for every measure, so that intervals of one table belong together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from asegnet_fast.errors import InputError

METHODS = ("bca", "percentile")
# Resamples of one batch hold at most this many unit numbers, which bounds the memory.
_BATCH = 1 << 18
# Two models that count the same pixels may differ by rounding.
_NO_DIFFERENCE = 1e-12


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: how often the units are drawn anew, 100 or more.
        level: confidence level, between 0 and 1.
        method: `bca` (bias-corrected and accelerated, Efron 1987) or `percentile`.
        seed: of the draws.

    Raises:
        ValueError: a field out of its range.
    """

    resamples: int = 2000
    level: float = 0.95
    method: str = "bca"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 100 <= self.resamples <= 1_000_000:
            raise InputError(f"resamples: expected a whole number from 100 to 1000000, got {self.resamples}")
        if not 0 < self.level < 1:
            raise InputError(f"level: expected a share between 0 and 1, got {self.level:g}")
        if self.method not in METHODS:
            raise InputError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed: expected a whole number from 0 to 2^32 - 1, got {self.seed}")


@dataclass(frozen=True)
class Interval:
    """A statistic and its bootstrap interval.

    Attributes:
        value: the statistic of all units, NaN where it is undefined.
        low, high: ends of the interval; NaN with fewer than 2 units.
        units: how many independent units were resampled.
        method: `bca` or `percentile`; where BCa is undefined (every resample on one side of the value), the
            interval is `percentile`.
    """

    value: float
    low: float
    high: float
    units: int
    method: str


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same pairs: how far apart, and how surely.

    Attributes:
        pairs: pairs with both values defined.
        left_out: pairs with an undefined value.
        wins, ties, losses: pairs where the first is higher, equal, lower.
        difference: mean of first - second with its paired bootstrap interval.
        median_difference: median of first - second.
        p_value: Wilcoxon signed-rank test, two-sided; 1 where all pairs are tied, NaN without pairs.
        smallest_p: what the test can reach at best with these pairs, 2^(1 - pairs that differ).
        rank_biserial: matched-pairs rank-biserial correlation, -1..1: the share of the rank sum in favour of
            the first less that in favour of the second (Kerby 2014). 0 where all pairs are tied.
        cohen_dz: mean difference over the standard deviation of the differences; NaN where that is 0.
    """

    pairs: int
    left_out: int
    wins: int
    ties: int
    losses: int
    difference: Interval
    median_difference: float
    p_value: float
    smallest_p: float
    rank_biserial: float
    cohen_dz: float

    def to_dict(self) -> dict:
        """The fields as plain numbers; `difference` as a dictionary."""
        return asdict(self)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], units: int, options: Bootstrap | None = None
) -> Interval:
    """The interval of any statistic of a set of units.

    Args:
        statistic: takes unit numbers, int64 [..., n] in 0..units-1 with repetitions, and returns float [...].
        units: number of independent units.
        options: how; the defaults of `Bootstrap` otherwise.

    Returns:
        The statistic of all units and its interval. Resamples without a defined value are left out.
    """
    from scipy import stats

    options = options or Bootstrap()
    everyone = np.arange(units)
    value = float(statistic(everyone)) if units else math.nan
    if units < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan, units, options.method)

    def along_the_last(sample: np.ndarray, axis: int) -> np.ndarray:
        # scipy puts the axis last in the resamples and in its jackknife.
        return statistic(np.moveaxis(sample, axis, -1))

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # of degenerate distributions, which are dealt with below
        result = stats.bootstrap(
            (everyone,),
            along_the_last,
            n_resamples=options.resamples,
            batch=max(1, _BATCH // units),
            vectorized=True,
            confidence_level=options.level,
            method={"bca": "BCa", "percentile": "percentile"}[options.method],
            rng=np.random.default_rng(options.seed),
        )
    low, high = (float(end) for end in result.confidence_interval)
    if not (math.isnan(low) or math.isnan(high)):
        return Interval(value, low, high, units, options.method)
    drawn = result.bootstrap_distribution
    drawn = drawn[~np.isnan(drawn)]
    tail = (1 - options.level) / 2
    # Nearest, because there is nothing between a number and an infinity.
    ends = np.quantile(drawn, [tail, 1 - tail], method="nearest") if drawn.size else (math.nan, math.nan)
    return Interval(value, float(ends[0]), float(ends[1]), units, "percentile")


def unit_sums(values: np.ndarray, units: Sequence[Hashable]) -> tuple[list, np.ndarray]:
    """Add up the rows of each unit.

    Args:
        values: [n, ...].
        units: the unit of each row; n entries.

    Returns:
        (the units in order of first appearance, float64 [units, ...]).
    """
    values = np.asarray(values, dtype=np.float64)
    number: dict[Hashable, int] = {}
    rows = [number.setdefault(unit, len(number)) for unit in units]
    if len(rows) != len(values):
        raise ValueError(f"units: expected {len(values)}, one for each value, got {len(rows)}")
    sums = np.zeros((len(number), *values.shape[1:]))
    np.add.at(sums, rows, values)
    return list(number), sums


def mean_interval(
    values: np.ndarray, units: Sequence[Hashable], options: Bootstrap | None = None
) -> Interval:
    """Mean of the defined values, with the interval over units.

    Args:
        values: float [n], or [n, classes]: then the mean over classes of their means.
        units: the unit of each value; n entries. A unit without a defined value is left out.
        options: see `Bootstrap`.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    defined = ~np.isnan(values)
    _, sums = unit_sums(np.where(defined, values, 0), units)
    _, numbers = unit_sums(defined, units)
    used = numbers.any(axis=1)
    sums, numbers = sums[used], numbers[used]

    def mean(chosen: np.ndarray) -> np.ndarray:
        return class_mean(_ratio(sums[chosen].sum(-2), numbers[chosen].sum(-2)))

    return bootstrap(mean, len(sums), options)


def pooled_interval(
    counts: np.ndarray,
    units: Sequence[Hashable],
    measure: Callable[[np.ndarray], np.ndarray],
    options: Bootstrap | None = None,
) -> Interval:
    """A measure of all counts added up, with the interval over units.

    Args:
        counts: [n, 4] or [n, classes, 4], TP, FP, FN, TN; with classes, the mean over them of the measure.
        units: the unit of each row; n entries.
        measure: of `asegnet_fast.evaluation.overlap`.
        options: see `Bootstrap`.
    """
    _, sums = unit_sums(_with_classes(counts), units)
    return bootstrap(lambda chosen: class_mean(measure(sums[chosen].sum(-3))), len(sums), options)


def pooled_difference(
    first: np.ndarray,
    second: np.ndarray,
    units: Sequence[Hashable],
    measure: Callable[[np.ndarray], np.ndarray],
    options: Bootstrap | None = None,
) -> Interval:
    """Difference of a pooled measure of two models on the same rows; each resample draws the same units for both.

    Args:
        first, second: [n, 4] or [n, classes, 4] counts of the two models.
        units: the unit of each row; n entries.
        measure: of `asegnet_fast.evaluation.overlap`.
        options: see `Bootstrap`.

    Returns:
        first - second.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"second: expected the shape of first, {np.shape(first)}, got {np.shape(second)}")
    _, both = unit_sums(np.stack([_with_classes(first), _with_classes(second)], axis=1), units)

    def difference(chosen: np.ndarray) -> np.ndarray:
        scores = class_mean(measure(both[chosen].sum(-4)))
        return scores[..., 0] - scores[..., 1]

    return bootstrap(difference, len(both), options)


def paired_test(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    options: Bootstrap | None = None,
) -> PairedTest:
    """Wilcoxon's signed-rank test and the bootstrap of the mean difference, on independent pairs.

    Args:
        first, second: [n], the two models' values of the same folds, patients or volumes. The pairs must be
            independent: take the mean over a patient's slices first (`unit_means`).
        options: of the interval; see `Bootstrap`.

    Raises:
        ValueError: not the same number of values.
    """
    from scipy import stats

    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"second: expected as many values as first, {first.shape}, got {second.shape}")
    with np.errstate(invalid="ignore"):
        # Two infinities of one sign are equal, not undefined.
        differences = np.where(first == second, 0.0, first - second)
    differences = differences[~np.isnan(differences)]
    differences = np.where(np.abs(differences) < _NO_DIFFERENCE, 0.0, differences)
    pairs = len(differences)
    changed = differences[differences != 0]
    wins, losses = int((changed > 0).sum()), int((changed < 0).sum())
    p_value, rank_biserial = (1.0, 0.0) if pairs else (math.nan, math.nan)
    if len(changed):
        p_value = float(stats.wilcoxon(changed).pvalue)
        ranks = stats.rankdata(np.abs(changed))
        rank_biserial = float((ranks * np.sign(changed)).sum() / ranks.sum())
    spread = math.nan
    if pairs > 1 and np.isfinite(differences).all():
        spread = float(differences.std(ddof=1))
    return PairedTest(
        pairs=pairs,
        left_out=len(first) - pairs,
        wins=wins,
        ties=pairs - wins - losses,
        losses=losses,
        difference=mean_interval(differences, range(pairs), options),
        median_difference=float(np.median(differences)) if pairs else math.nan,
        p_value=p_value,
        smallest_p=2.0 ** (1 - len(changed)) if len(changed) else p_value,
        rank_biserial=rank_biserial,
        cohen_dz=float(differences.mean()) / spread if spread > 0 else math.nan,
    )


def unit_means(values: np.ndarray, units: Sequence[Hashable]) -> tuple[list, np.ndarray]:
    """Mean of the defined values of each unit, so that patients, not slices, are compared.

    Args:
        values: float [n].
        units: the unit of each value; n entries.

    Returns:
        (the units in order of first appearance, float64 [units], NaN where a unit has no defined value).
    """
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    names, sums = unit_sums(np.where(defined, values, 0), units)
    return names, _ratio(sums, unit_sums(defined, units)[1])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979); NaN stays and does not count."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


def class_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the defined values; NaN where there is none."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _with_classes(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim not in (2, 3) or counts.shape[-1] != 4:
        raise ValueError(f"counts: expected [n, 4] or [n, classes, 4], got {list(counts.shape)}")
    return counts[:, None] if counts.ndim == 2 else counts
