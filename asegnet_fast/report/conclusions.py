"""The paper's four conclusions, each asked of a run's own counts.

A conclusion is one comparison or two. A comparison is a set of pairs of rows that differ in one thing only; its effect
is the mean over the pairs of the difference of their pooled Dice. Patients (or files) are drawn anew as a whole for
the interval, the same ones for every row, so that what is hard about a patient cancels out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asegnet_fast.evaluation.overlap import dice
from asegnet_fast.evaluation.statistics import (
    Bootstrap,
    Interval,
    PairedTest,
    bootstrap,
    class_mean,
    paired_test,
    unit_sums,
)
from asegnet_fast.report.counts import RunCounts, past_the_floor

OPTIONS = Bootstrap()
SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_ANSWERABLE = (
    "supported",
    "not supported",
    "undecided",
    "not answerable",
)
#: Below this many patients the signed-rank test cannot reach 0.05 whatever the numbers (2 / 2^5 = 0.0625).
FEWEST_UNITS = 6

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A question to pairs of rows.

    Attributes:
        name: what is compared, `first - second`.
        pairs: (first, second), folders of rows.
        needs: which rows would be needed, in words, where there is no pair.
        effect: difference of pooled Dice in shares of 1, with its interval; None without pairs.
        test: on the patients' own Dice; None without pairs.
        folds_in_favour: in how many folds the effect is above 0, and of how many.
        slices: on how many slices all rows were measured.
        paper: the same difference in the paper's Table 1 over the pairs that it has, in shares of 1; None
            where it has none of them.
    """

    name: str
    pairs: list[tuple[str, str]]
    needs: str
    effect: Interval | None = None
    test: PairedTest | None = None
    folds_in_favour: tuple[int, int] | None = None
    slices: int = 0
    paper: float | None = None


@dataclass(frozen=True)
class Conclusion:
    """One conclusion of the paper, the comparisons that decide it, and what they say.

    verdict: `supported` (every comparison's interval lies above 0), `not supported` (one lies below 0),
    `undecided` (neither, too few patients, or no row above the floor) or `not answerable` (rows are absent). reason:
    why, in one sentence.
    """

    number: int
    claim: str
    comparisons: list[Comparison]
    verdict: str
    reason: str


def draw_conclusions(
    summary: dict[str, Any], counts: RunCounts, intervals: dict[str, dict[str, Interval]]
) -> list[Conclusion]:
    """Ask the paper's four conclusions of a run.

    Args:
        summary: the content of summary.json.
        counts, intervals: of the same run.
    """
    passed = past_the_floor(summary, intervals)
    rows = summary["rows"]
    tversky = [row for row in rows if row["loss"] in ("tl", "ftl")]
    focal, plain = ([row for row in rows if row["loss"] == kind] for kind in ("ftl", "tl"))
    soft = [row for row in rows if row["loss"] == "dl"]
    low = [row for row in tversky if row["alpha"] < row["beta"]]
    equal = [row for row in tversky if row["alpha"] == row["beta"]]
    high = [row for row in tversky if row["alpha"] > row["beta"]]
    asked = [
        (
            "The attention gate helps.",
            [
                (
                    "A-SegNet − SegNet, same loss",
                    _matched(
                        _model(rows, "a_segnet"), _model(rows, "segnet"), "loss", "alpha", "beta", "gamma"
                    ),
                    "both models with the same loss",
                )
            ],
        ),
        (
            "The focal Tversky loss is the best loss.",
            [
                ("FTL − DL, same model", _matched(focal, soft, "model"), "ftl:… and dl, same model"),
                ("FTL − TL, same model", _matched(focal, plain, "model"), "ftl:… and tl:…, same model"),
            ],
        ),
        (
            "The focal exponent γ helps.",
            [
                (
                    "FTL − TL, same model, α and β",
                    _matched(focal, plain, "model", "alpha", "beta"),
                    "ftl:A:B:G and tl:A:B with the same A and B, same model",
                )
            ],
        ),
        (
            "A low α with a high β is best.",
            [
                (
                    "α < β minus α = β, same model, loss and γ",
                    _matched(low, equal, "model", "loss", "gamma"),
                    "ftl or tl with α < β and with α = β, same model and γ",
                ),
                (
                    "α < β minus α > β, same model, loss and γ",
                    _matched(low, high, "model", "loss", "gamma"),
                    "ftl or tl with α < β and with α > β, same model and γ",
                ),
            ],
        ),
    ]
    return [
        _conclusion(number, claim, [_compare(*question, rows, counts) for question in questions], passed)
        for number, (claim, questions) in enumerate(asked, 1)
    ]


def records(conclusions: Sequence[Conclusion]) -> list[dict[str, Any]]:
    """One flat record for each comparison, differences in points of Dice; None where there is no number."""
    flat = []
    for conclusion in conclusions:
        for comparison in conclusion.comparisons:
            effect, test = comparison.effect, comparison.test
            flat.append(
                {
                    "conclusion": conclusion.number,
                    "claim": conclusion.claim,
                    "verdict": conclusion.verdict,
                    "reason": conclusion.reason,
                    "comparison": comparison.name,
                    "pairs": " ".join(f"{first}/{second}" for first, second in comparison.pairs),
                    "dice_points": _points(effect and effect.value),
                    "low": _points(effect and effect.low),
                    "high": _points(effect and effect.high),
                    "level": effect and OPTIONS.level,
                    "method": effect and effect.method,
                    "units": effect and effect.units,
                    "slices": comparison.slices,
                    "units_in_favour": test and test.wins,
                    "cohen_dz": _number(test and test.cohen_dz),
                    "p_value": _number(test and test.p_value),
                    "folds_in_favour": comparison.folds_in_favour and comparison.folds_in_favour[0],
                    "folds": comparison.folds_in_favour and comparison.folds_in_favour[1],
                    "paper_dice_points": _points(comparison.paper),
                }
            )
    return flat


def _model(rows: list[Row], model: str) -> list[Row]:
    return [row for row in rows if row["model"] == model]


def _matched(first: list[Row], second: list[Row], *keys: str) -> list[tuple[Row, Row]]:
    """Every pair that agrees in `keys`."""
    return [(a, b) for a, b in itertools.product(first, second) if all(a[key] == b[key] for key in keys)]


def _compare(
    name: str, pairs: list[tuple[Row, Row]], needs: str, rows: list[Row], counts: RunCounts
) -> Comparison:
    named = [(first["folder"], second["folder"]) for first, second in pairs]
    used = sorted({folder for pair in named for folder in pair})
    tested = counts.tested(used) if used else np.empty(0, np.int64)
    if not len(tested):
        return Comparison(name, [], needs)
    weights = np.zeros(len(used))
    for first, second in named:
        weights[used.index(first)] += 1 / len(named)
        weights[used.index(second)] -= 1 / len(named)
    table = np.stack([counts.by_row[folder][tested] for folder in used], axis=1)  # [slices, rows, classes, 4]
    _, sums = unit_sums(table, [counts.groups[i] for i in tested])
    by_fold = _scores(unit_sums(table, counts.folds[tested])[1]) @ weights
    by_unit = _scores(sums)  # [units, rows]
    up, down = np.maximum(weights, 0), np.maximum(-weights, 0)
    return Comparison(
        name,
        named,
        needs,
        effect=bootstrap(lambda chosen: _scores(sums[chosen].sum(-4)) @ weights, len(sums), OPTIONS),
        test=paired_test(by_unit @ up, by_unit @ down, OPTIONS),
        folds_in_favour=(int((by_fold > 0).sum()), len(by_fold)),
        slices=len(tested),
        paper=_in_the_paper(pairs),
    )


def _scores(counts: np.ndarray) -> np.ndarray:
    """Dice, the mean over classes: [..., classes, 4] -> [...]."""
    return class_mean(dice(counts))


def _in_the_paper(pairs: list[tuple[Row, Row]]) -> float | None:
    known = [(a["paper"]["dice"], b["paper"]["dice"]) for a, b in pairs if a["paper"] and b["paper"]]
    return sum(first - second for first, second in known) / len(known) if known else None


def _conclusion(number: int, claim: str, comparisons: list[Comparison], passed: set[str]) -> Conclusion:
    def verdict(word: str, why: str) -> Conclusion:
        return Conclusion(number, claim, comparisons, word, why)

    if absent := [comparison.needs for comparison in comparisons if comparison.effect is None]:
        return verdict(NOT_ANSWERABLE, f"Not answerable from this run: needs rows {'; and '.join(absent)}.")
    effects = [comparison.effect for comparison in comparisons]
    units = min(effect.units for effect in effects)
    if units < FEWEST_UNITS:
        return verdict(
            UNDECIDED,
            f"{units} patients or files are too few: below {FEWEST_UNITS} no paired test can reach 5 %, "
            "whatever the numbers.",
        )
    for comparison in comparisons:
        if not passed & {row for pair in comparison.pairs for row in pair}:
            return verdict(
                UNDECIDED,
                f"None of the rows of {comparison.name} is shown to be better than the best constant answer.",
            )
    below = [comparison.name for comparison in comparisons if comparison.effect.high < 0]
    if below:
        return verdict(NOT_SUPPORTED, f"The interval lies below 0: {'; '.join(below)}.")
    if all(effect.low > 0 for effect in effects):
        return verdict(
            SUPPORTED, "The interval lies above 0" + (" in both comparisons." if len(effects) > 1 else ".")
        )
    across = [comparison.name for comparison in comparisons if not comparison.effect.low > 0]
    return verdict(UNDECIDED, f"The interval reaches 0: {'; '.join(across)}.")


def _points(share: float | None) -> float | None:
    return _number(None if share is None else 100 * share)


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 4)
