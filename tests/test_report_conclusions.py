"""The paper's conclusions put to counts whose answer is known."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from asegnet_fast import paper
from asegnet_fast.evaluation.overlap import dice
from asegnet_fast.evaluation.statistics import Bootstrap, Interval
from asegnet_fast.files import write_csv
from asegnet_fast.report.conclusions import draw_conclusions, records
from asegnet_fast.report.counts import RunCounts, read_counts, row_intervals
from asegnet_fast.report.limits import limits
from asegnet_fast.training.config import Row
from asegnet_fast.training.losses import Loss
from tests.program_runs import finished_run


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("asegnet_fast.report.conclusions.OPTIONS", Bootstrap(resamples=300))


ALL = [(model, loss) for loss in paper.TABLE1 for model in ("segnet", "a_segnet")]


def made(scores, patients=12, rows=ALL, seed=0, floor=0.05):
    """A run in which row r has about Dice scores(model, loss) for every patient; two slices each, three folds."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 0.01, 2 * patients)
    groups = tuple(f"p{i // 2}" for i in range(2 * patients))
    by_row, summary_rows = {}, []
    for model, text in rows:
        row = Row(model, Loss.parse(text))
        share = np.clip(scores(model, text) + noise + random.normal(0, 0.003, 2 * patients), 0.001, 0.999)
        tp = np.round(1000 * share).astype(np.int64)
        # Dice = 2 tp / (2 tp + 2 (1000 - tp)) = share.
        counts = np.stack([tp, 1000 - tp, 1000 - tp, np.full_like(tp, 20000)], 1)[:, None]
        by_row[row.folder] = counts
        summary_rows.append({**row.to_json(), "folder": row.folder, "paper": row.paper()})
    counts = RunCounts(groups, groups, np.arange(2 * patients) // 2 % 3, by_row)
    summary = {"rows": summary_rows, "trivial": {"best_constant": {"dice": {"pooled": floor}}}}
    pooled = {row: float(dice(table.sum((0, 1)))) for row, table in by_row.items()}
    intervals = {
        row: {"dice": Interval(value, value - 0.02, value + 0.02, patients, "bca")}
        for row, value in pooled.items()
    }
    return summary, counts, intervals


def test_true_conclusions_are_supported_with_their_effect():
    def scores(model, loss):
        kind, *numbers = loss.split(":")
        low = bool(numbers) and float(numbers[0]) < float(numbers[1])
        return 0.5 + 0.1 * (model == "a_segnet") + 0.06 * (kind == "ftl") + 0.03 * low

    first, second, third, fourth = draw_conclusions(*made(scores))
    assert [c.verdict for c in (first, second, third, fourth)] == ["supported"] * 4
    (gate,) = first.comparisons
    assert len(gate.pairs) == 7 and gate.effect.value == pytest.approx(0.10, abs=0.003)
    assert gate.effect.low < 0.10 < gate.effect.high and gate.effect.high - gate.effect.low < 0.01
    assert gate.effect.units == 12 and gate.slices == 24 and gate.folds_in_favour == (3, 3)
    assert gate.test.wins == 12 and gate.test.p_value < 0.001
    assert [len(c.pairs) for c in second.comparisons] == [6, 18]
    assert second.comparisons[0].effect.value == pytest.approx(0.07, abs=0.003)
    assert third.comparisons[0].effect.value == pytest.approx(0.06, abs=0.003)
    assert len(third.comparisons[0].pairs) == 6
    assert [c.effect.value for c in fourth.comparisons] == pytest.approx([0.03, 0.03], abs=0.003)


def test_the_papers_own_differences_stand_beside():
    first, _, third, fourth = draw_conclusions(*made(lambda *_: 0.5))
    gate = np.mean([models["a_segnet"][0] - models["segnet"][0] for models in paper.TABLE1.values()])
    assert 100 * first.comparisons[0].paper == pytest.approx(gate)
    gamma = [
        paper.TABLE1[f"f{loss}:4/3"][model][0] - paper.TABLE1[loss][model][0]
        for loss in ("tl:0.7:0.3", "tl:0.5:0.5", "tl:0.3:0.7")
        for model in ("segnet", "a_segnet")
    ]
    assert 100 * third.comparisons[0].paper == pytest.approx(np.mean(gamma))
    assert fourth.comparisons[0].paper is not None


def test_the_contrary_is_not_supported_and_no_difference_is_undecided():
    conclusions = draw_conclusions(*made(lambda model, loss: 0.5 - 0.1 * (model == "a_segnet")))
    assert conclusions[0].verdict == "not supported" and "below 0" in conclusions[0].reason
    assert conclusions[0].comparisons[0].effect.high < 0
    assert conclusions[2].verdict == "undecided" and "reaches 0" in conclusions[2].reason


def test_one_comparison_below_zero_is_enough():
    def scores(model, loss):
        return 0.5 + 0.2 * (loss == "dl") + 0.1 * loss.startswith("ftl")

    best = draw_conclusions(*made(scores))[1]
    assert best.verdict == "not supported" and "FTL − DL" in best.reason
    assert best.comparisons[1].effect.low > 0


def test_few_patients_decide_nothing():
    conclusions = draw_conclusions(*made(lambda model, loss: 0.5 + 0.3 * (model == "a_segnet"), patients=5))
    assert (
        conclusions[0].verdict == "undecided" and "5 patients or files are too few" in conclusions[0].reason
    )
    conclusions = draw_conclusions(*made(lambda model, loss: 0.5 + 0.3 * (model == "a_segnet"), patients=6))
    assert conclusions[0].verdict == "supported"


def test_rows_that_learnt_nothing_decide_nothing():
    run = made(lambda model, loss: 0.3 + 0.1 * (model == "a_segnet"), floor=0.6)
    first = draw_conclusions(*run)[0]
    assert first.verdict == "undecided" and "better than the best constant answer" in first.reason


def test_absent_rows_are_named():
    rows = [("segnet", "ftl:0.3:0.7:4/3"), ("segnet", "tl:0.3:0.7")]
    first, second, third, fourth = draw_conclusions(*made(lambda *_: 0.5, rows=rows))
    assert [c.verdict for c in (first, second, fourth)] == ["not answerable"] * 3
    assert "needs rows both models with the same loss" in first.reason
    assert "ftl:… and dl" in second.reason and "tl:…" not in second.reason.replace("ftl:…", "")
    assert third.verdict == "undecided" and len(third.comparisons[0].pairs) == 1
    assert first.comparisons[0].effect is None and first.comparisons[0].paper is None


def test_rows_are_compared_on_the_slices_that_both_have():
    summary, counts, intervals = made(lambda model, loss: 0.5 + 0.1 * (model == "a_segnet"))
    row = next(row["folder"] for row in summary["rows"] if row["folder"].startswith("a_segnet"))
    counts.by_row[row][counts.folds == 1] = -1
    (gate,) = draw_conclusions(summary, counts, intervals)[0].comparisons
    assert gate.slices == int((counts.folds != 1).sum()) and gate.folds_in_favour == (2, 2)
    assert gate.effect.value == pytest.approx(0.10, abs=0.005)


def test_records_are_a_flat_table(tmp_path):
    flat = records(draw_conclusions(*made(lambda *_: 0.5, rows=[("segnet", "dl")])))
    assert len(flat) == 6 and all(record["dice_points"] is None for record in flat)
    flat = records(draw_conclusions(*made(lambda model, _: 0.5 + 0.1 * (model == "a_segnet"))))
    write_csv(tmp_path / "c.csv", flat)
    with open(tmp_path / "c.csv", newline="", encoding="utf-8") as stream:
        first = next(csv.DictReader(stream))
    assert float(first["dice_points"]) == pytest.approx(10, abs=0.3) and first["verdict"] == "supported"
    assert float(first["low"]) < 10 < float(first["high"]) and first["units"] == "12"


def test_counts_are_read_with_their_patients():
    run = finished_run()
    summary = json.loads((run / "summary.json").read_text())
    counts = read_counts(run, summary)
    metrics = json.loads((run / "segnet--dl" / "fold1" / "metrics.json").read_text())
    place = metrics["test_indices"][3]
    assert counts.by_row["segnet--dl"][place].tolist() == metrics["counts"][3] and counts.folds[place] == 1
    folds = json.loads((run / "folds.json").read_text())["folds"]
    assert counts.groups[place] == folds[1]["test"][3]["group"]
    assert counts.files[place] == folds[1]["test"][3]["file"]
    pooled = row_intervals(counts)["segnet--dl"]["dice"]
    assert pooled.value == pytest.approx(summary["rows"][0]["dice"]["pooled"], abs=1e-6)
    assert pooled.low <= pooled.value <= pooled.high and pooled.units == 4


def test_metrics_that_do_not_fit_the_folds_are_named(tmp_path):
    shutil.copytree(finished_run(), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    path = tmp_path / "run" / "segnet--dl" / "fold0" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"test_indices": metrics["test_indices"][1:]}))
    with pytest.raises(ValueError, match=r"fold0/metrics\.json: expected the \d+ test slices"):
        read_counts(tmp_path / "run", summary)


def test_limits_are_told_from_the_data():
    run = finished_run()
    summary = json.loads((run / "summary.json").read_text())
    settings = json.loads((run / "config.json").read_text())["settings"]
    counts = read_counts(run, summary)
    intervals = row_intervals(counts)
    told = "\n".join(limits(run, summary, settings, counts, intervals))
    for text in (
        "3 epochs; the paper trained for 50",
        "4 patients or files",
        "One seed (0)",
        "32 x 32 pixels",
    ):
        assert text in told
    assert "leak" not in told and "split is by slice" not in told
    counts.by_row["segnet--dl"][counts.folds == 1] = [[0, 0, 50, 974]]
    above = {row: {"dice": Interval(0.9, 0.8, 0.95, 4, "bca")} for row in intervals}
    changed = summary | {"split": "slice", "leak_percent": 93.2, "epochs": 50, "missing_rows": ["segnet--ce"]}
    told = "\n".join(limits(run, changed, settings | {"size": 256}, counts, above))
    assert "93.2 % of the test slices" in told and "segnet--ce" in told
    assert "Predicts no lesion on any test slice: SegNet, DL (fold 1)" in told
    for text in ("the paper trained", "pixels; the paper", "best constant"):
        assert text not in told
    assert math.isfinite(intervals["segnet--dl"]["dice"].value)
