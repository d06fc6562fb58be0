"""Records summed up, compared, stored and printed."""

import json
import math

import numpy as np
import pytest

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation import (
    Bootstrap,
    Conventions,
    Record,
    evaluate_records,
    gather,
    measure_case,
    read_records,
    run_record,
    summarise,
    write_evaluation,
)
from asegnet_fast.evaluation.record import VOLUMES
from asegnet_fast.evaluation.tables import foot, markdown, terminal_tables
from asegnet_fast.training import metrics

AFFINE = np.diag([0.8, 0.8, 5.0, 1.0])
QUICK = Bootstrap(resamples=200)


def record(name="mine", seed=0, cases=6, labels=(1,), folds=True, shift=1) -> Record:
    """Boxes of a few sizes against the same boxes, shifted."""
    made = []
    for k in range(cases):
        truth = np.zeros((16, 16, 4), np.uint8)
        for c in range(len(labels)):
            truth[2 + 6 * c : 7 + 6 * c, 3 : 6 + k, 1:3] = c + 1
        prediction = np.roll(truth, shift + k % 2, axis=1)
        fold = [k % 2] * 4 if folds else None
        made.append(
            measure_case(prediction, truth, AFFINE, 2, labels, f"case{k}", f"patient{k // 2}", folds=fold)
        )
    return gather(name, made)


def test_the_averages_are_those_of_training():
    """Pooled, per image and per fold as `training.metrics.summarise` has them for a run."""
    ours = summarise(record(labels=(1, 2)), Conventions(), QUICK)["measures"]
    both = record(labels=(1, 2))
    folds = both.image_folds()
    theirs = metrics.summarise([both.image_counts()[folds == fold] for fold in (0, 1)])
    for name in ("dice", "sensitivity", "specificity"):
        assert ours[name]["pooled"]["value"] == pytest.approx(theirs[name]["pooled"], abs=1e-6)
        assert ours[name]["per_image_mean"]["value"] == pytest.approx(
            theirs[name]["per_image_mean"], abs=1e-6
        )
        assert ours[name]["per_fold_mean"]["value"] == pytest.approx(theirs[name]["per_fold_mean"], abs=1e-6)
        assert ours[name]["per_fold_mean"]["sd"] == pytest.approx(theirs[name]["per_fold_sd"], abs=1e-6)


def test_a_summary():
    mine = record()
    summary = summarise(mine, Conventions(), QUICK)["measures"]
    assert set(VOLUMES) < set(summary)
    dice = summary["dice"]["per_volume_mean"]
    values = mine.values("dice", Conventions())[:, 0]
    assert dice["value"] == pytest.approx(values.mean()) and dice["sd"] == pytest.approx(values.std(ddof=1))
    assert dice["median"] == pytest.approx(np.median(values))
    assert dice["low"] < dice["value"] < dice["high"] and dice["units"] == 3
    assert summary["hd95"]["unit"] == "mm" and "pooled" not in summary["hd95"]
    # Two of the four slices of each case are empty in both masks.
    assert summary["hd95"]["per_image_mean"]["undefined"] == 12
    assert summary["dice"]["per_image_mean"]["undefined"] == 0
    assert "per_image_mean" not in summary["volume_error"]
    assert summary["volume_error"]["per_volume_mean"]["value"] == 0


def test_classes_stand_beside_their_mean():
    summary = summarise(record(labels=(1, 7)), Conventions(), QUICK)
    assert [entry["label"] for entry in summary["classes"]] == [1, 7]
    each = [entry["measures"]["dice"]["pooled"]["value"] for entry in summary["classes"]]
    assert summary["measures"]["dice"]["pooled"]["value"] == pytest.approx(np.mean(each))
    assert "sd" in summary["classes"][0]["measures"]["dice"]["per_volume_mean"]
    assert "sd" not in summary["measures"]["dice"]["per_volume_mean"]


def test_a_better_model_is_told():
    better, worse = record("better", shift=1), record("worse", shift=2)
    comparison = evaluate_records([better, worse], options=QUICK, compared=[(0, 1)])["comparisons"][0]
    dice = comparison["measures"]["dice"]
    assert dice["pooled_difference"]["low"] > 0
    assert dice["per_unit"]["pairs"] == 3 and dice["per_unit"]["wins"] == 3
    assert dice["per_unit"]["p_value"] == dice["per_unit"]["smallest_p"] == 0.25
    assert dice["per_fold"]["pairs"] == 2 and dice["per_fold"]["rank_biserial"] == 1
    assert comparison["measures"]["hd95"]["per_unit"]["difference"]["value"] < 0
    assert "truth_volume" not in comparison["measures"]


def test_several_comparisons_are_adjusted():
    models = [record(name, shift=shift) for name, shift in (("a", 1), ("b", 2), ("c", 3))]
    content = evaluate_records(models, options=QUICK, compared=[(0, 1), (0, 2)])
    tests = [c["measures"]["dice"]["per_unit"] for c in content["comparisons"]]
    assert [test["p_value"] for test in tests] == [0.25, 0.25]
    assert [test["p_holm"] for test in tests] == [0.5, 0.5]
    assert "p (Holm)" in markdown(content)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cases": 5}, "expected the cases of mine, 6 of them, got case5 missing"),
        ({"folds": False}, "expected the slices of mine"),
        ({"labels": (2,)}, "expected the labels of mine, 1, got 2"),
    ],
)
def test_only_the_same_cases_are_compared(other, said):
    with pytest.raises(InputError, match=said):
        evaluate_records([record(), record("theirs", **other)], options=QUICK, compared=[(0, 1)])


def test_another_truth_is_noticed():
    mine, theirs = record(), record("theirs")
    theirs.cases[0].counts[1, 0] = theirs.cases[0].counts[2, 0] + [1, 0, 0, -1]
    with pytest.raises(InputError, match="expected the truth of mine, the same pixels in case0"):
        evaluate_records([mine, theirs], options=QUICK, compared=[(0, 1)])
    with pytest.raises(InputError, match="models of different names, got mine twice"):
        evaluate_records([mine, mine], options=QUICK)


@pytest.mark.parametrize("labels", [(1,), (1, 7)])
def test_what_is_written_is_read_back(tmp_path, labels):
    mine, conventions = record(labels=labels), Conventions.parse("hd95=nan/inf")
    # A missed lesion: an infinite mean and undefined numbers must be JSON, too.
    missed = measure_case(
        np.zeros((16, 16, 4), np.uint8),
        np.ones((16, 16, 4), np.uint8),
        AFFINE,
        2,
        labels,
        "missed",
        folds=[1] * 4,
    )
    mine = gather("mine", [*mine.cases, missed])
    content = evaluate_records([mine], conventions, QUICK, source={"kind": "test"}, notes=["a note"])
    write_evaluation(tmp_path, content, [mine], conventions)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(content))
    assert stored["empty"]["hd95"] == "nan/inf"
    assert stored["records"][0]["summary"]["measures"]["hd95"]["per_volume_mean"]["value"] == "inf"
    (again,) = read_records(tmp_path)
    assert again.labels == mine.labels and again.units() == mine.units()
    for name in mine.measures():
        assert again.values(name, conventions) == pytest.approx(mine.values(name, conventions), nan_ok=True)
    lines = (tmp_path / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 7 * len(labels) and lines[0].startswith("model,case,unit,folds,label,slices,tp")
    assert len((tmp_path / "slices.csv").read_text().splitlines()) == 1 + 28 * len(labels)
    text = (tmp_path / "evaluation.md").read_text()
    assert (
        "∞" in text
        and "Note: a note" in text
        and "hd95 left out where both masks are empty, infinite" in text
    )


@pytest.mark.parametrize("damage", ["format", "counts", "cut"])
def test_a_damaged_evaluation_is_refused(tmp_path, damage):
    content = evaluate_records([record()], options=QUICK)
    if damage == "format":
        content["format"] = "another"
    elif damage == "counts":
        content["records"][0]["cases"][2]["counts"][0][0][0] += 1
    text = json.dumps(content)
    (tmp_path / "evaluation.json").write_text(text[: len(text) // 2] if damage == "cut" else text)
    with pytest.raises(InputError, match="expected"):
        read_records(tmp_path)


def test_tables_fit_a_terminal():
    from rich.console import Console

    models = [record("a_segnet--ftl-a0.3-b0.7-g1.3333", labels=(1, 2)), record("b", labels=(1, 2), shift=2)]
    for records, compared in (models[:1], []), (models, [(0, 1)]):
        content = evaluate_records(records, options=QUICK, compared=compared)
        console = Console(width=80, record=True, quiet=True)
        for table in terminal_tables(content):
            assert console.measure(table).minimum <= 80
        assert any("Empty masks: dice 1 where both masks are empty" in line for line in foot(content))


def test_a_runs_rows_are_cases_of_file_and_patient():
    slices = [
        [{"file": "x", "index": 4, "group": "P"}, {"file": "x", "index": 1, "group": "Q"}],
        [{"file": "x", "index": 2, "group": "P"}, {"file": "y", "index": 0, "group": "P"}],
    ]
    counts = [[[[1, 0, 0, 8]], [[0, 0, 2, 7]]], [[[0, 1, 0, 8]], [[3, 0, 0, 6]]]]
    found = {fold: {"counts": part} for fold, part in enumerate(counts)}
    row = run_record("row", found, slices, (1,))
    assert [(c.name, c.unit, c.indices, c.folds) for c in row.cases] == [
        ("x [P]", "P", (2, 4), (1, 0)),
        ("x [Q]", "Q", (1,), (0,)),
        ("y", "P", (0,), (1,)),
    ]
    assert row.counts()[:, 0].tolist() == [[1, 1, 0, 16], [0, 0, 2, 7], [3, 0, 0, 6]]
    assert not row.has_space and "hd95" not in row.measures()
    measures = summarise(row, Conventions(), QUICK)["measures"]
    assert measures["dice"]["pooled"]["value"] == pytest.approx(8 / 11)
    assert measures["dice"]["per_fold_mean"]["folds"] == pytest.approx([0.5, 6 / 7])
    with pytest.raises(InputError, match="row/fold1: expected counts of the fold's test slices"):
        run_record("row", {1: {"counts": counts[0][:1]}}, slices, (1,))
    assert math.isclose(measures["dice"]["per_volume_mean"]["value"], (2 / 3 + 0 + 1) / 3)
