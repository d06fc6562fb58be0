"""`asegnet-fast evaluate` as a user types it."""

import csv
import json

import numpy as np
import pytest

from asegnet_fast import cli
from asegnet_fast.training.crossval import summarise_run
from tests.data_sets import blob_mask, write
from tests.program_runs import finished_run

FEW = ["--resamples", "100"]


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Three true masks, two models that are off by one pixel and by three; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    for k in range(3):
        truth = np.roll(blob_mask(), k, axis=1)
        for name, shift in (("truth", 0), ("near", 1), ("far", 3)):
            write(tmp_path / name / f"case{k}.nii.gz", np.roll(truth, shift, axis=0))
    return tmp_path


def run(*arguments, capsys=None) -> str:
    assert cli.main(["evaluate", *map(str, arguments), *FEW]) == 0
    return capsys.readouterr().out if capsys else ""


def content(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_masks(masks, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = run(
        "--predictions", "near", "--truth", "truth", "--compare", "far", "--out", "out", capsys=capsys
    )
    # Of a row of 10 pixels 9 and 7 are met.
    models = content(masks / "out")["records"]
    assert [m["name"] for m in models] == ["near", "far"]
    assert [m["summary"]["measures"]["dice"]["pooled"]["value"] for m in models] == pytest.approx([0.9, 0.7])
    assert [m["summary"]["measures"]["hd95"]["per_volume_mean"]["value"] for m in models] == pytest.approx(
        [0.8, 2.4]
    )
    (comparison,) = content(masks / "out")["comparisons"]
    assert comparison["measures"]["dice"]["pooled_difference"]["value"] == pytest.approx(0.2)
    assert comparison["measures"]["dice"]["per_unit"]["wins"] == 3
    assert "90.00" in printed and "dice=one/zero" in printed
    table = printed[: printed.index("Cases: 3, independent units: 3, slices: 18")].splitlines()
    assert "near" in "".join(table) and max(map(len, table)) <= 80
    with open(masks / "out" / "cases.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["model"], row["case"]) for row in rows[:2]] == [("near", "case0"), ("near", "case1")]
    assert float(rows[0]["dice"]) == pytest.approx(0.9) and len(rows) == 6
    assert "| Dice %" in (masks / "out" / "evaluation.md").read_text()


def test_an_earlier_evaluation_is_compared_with(masks):
    run("--predictions", "far", "--truth", "truth", "--out", "far_out")
    run("--predictions", "near", "--truth", "truth", "--out", "out", "--compare", "far_out")
    (comparison,) = content(masks / "out")["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("near", "far")
    direct = masks / "direct"
    run("--predictions", "near", "--truth", "truth", "--out", direct, "--compare", "far")
    assert content(direct)["comparisons"] == [comparison]


def test_one_file_with_a_convention(masks):
    write(masks / "none.nii.gz", np.zeros_like(blob_mask()))
    arguments = ["--truth", "truth/case0.nii.gz", "--predictions", "none.nii.gz", "--out", "out"]
    run(*arguments, "--empty", "brats", "--select", "lesion")
    measures = content(masks / "out")["records"][0]["summary"]["measures"]
    assert measures["hd95"]["per_volume_mean"]["value"] == 374
    assert (
        measures["dice"]["per_image_mean"] | {"units": 1, "value": 0, "low": None}
        == measures["dice"]["per_image_mean"]
    )
    assert content(masks / "out")["empty"]["hd95"] == "zero/374"


def test_a_run(tmp_path, capsys):
    printed = run(finished_run(), "--out", tmp_path / "out", capsys=capsys)
    evaluation = content(tmp_path / "out")
    rows = summarise_run(finished_run())["rows"]
    assert [record["name"] for record in evaluation["records"]] == [row["folder"] for row in rows]
    for record, row in zip(evaluation["records"], rows, strict=True):
        for name in ("dice", "sensitivity", "specificity"):
            ours = record["summary"]["measures"][name]
            assert ours["pooled"]["value"] == pytest.approx(row[name]["pooled"], abs=1e-6)
            assert ours["per_fold_mean"]["value"] == pytest.approx(row[name]["per_fold_mean"], abs=1e-6)
        assert record["summary"]["measures"]["dice"]["pooled"]["units"] == 4
    # Every row against the first, over the four patients and the two folds.
    assert [c["second"] for c in evaluation["comparisons"]] == [rows[0]["folder"]] * 3
    test = evaluation["comparisons"][0]["measures"]["dice"]
    assert test["per_unit"]["pairs"] == 4 and test["per_fold"]["pairs"] == 2 and "p_holm" in test["per_unit"]
    assert "split by patient" in printed
    run(finished_run(), "--out", tmp_path / "all", "--compare", "all")
    assert len(content(tmp_path / "all")["comparisons"]) == 6
    run(finished_run(), "--out", tmp_path / "one", "--compare", rows[2]["folder"])
    assert {c["second"] for c in content(tmp_path / "one")["comparisons"]} == {rows[2]["folder"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN, --predictions: expected one of them, got neither"),
        (["run", "--predictions", "near"], "got both"),
        (["run", "--truth", "truth"], "--truth, --groups: expected with --predictions only"),
        (["--predictions", "near", "--out", "o"], "--truth: expected the true masks"),
        (["--predictions", "near", "--truth", "truth"], "--out: expected a folder"),
        (
            ["--predictions", "near", "--truth", "truth", "--out", "none.txt"],
            "--out: expected a folder, got a file",
        ),
        (["nothing"], "nothing: expected a folder with a run"),
        (
            ["--predictions", "nothing", "--truth", "truth", "--out", "o"],
            "--predictions: expected a NIfTI file",
        ),
        (
            ["--predictions", "near", "--truth", "truth", "--out", "o", "--compare", "no"],
            "--compare: expected pred",
        ),
        (
            ["--predictions", "near", "--truth", "truth", "--out", "o", "--compare", "near"],
            "expected other masks",
        ),
        (["--predictions", "near", "--truth", "truth", "--out", "o", "--compare", "none.txt"], "none.txt"),
        (["run", "--labels", "both"], "--labels: expected one of merge, keep, got 'both'"),
        (["run", "--select", "some"], "--select: expected one of lesion, all"),
        (["run", "--empty", "dice=two"], "--empty: expected dice=nan|zero|one/nan|zero, got 'dice=two'"),
        (["run", "--tolerance", "-1"], "--tolerance: expected millimetres"),
        (["run", "--tolerance", "nan"], "--tolerance: expected millimetres"),
        (["run", "--resamples", "5"], "--resamples: expected a whole number from 100"),
        (["run", "--resamples", "x"], "--resamples"),
        (["run", "--level", "95"], "--level: expected a share between 0 and 1, got 95"),
        (["run", "--method", "t"], "--method: expected one of bca, percentile"),
        (["run", "--seed", "-1"], "--seed: expected"),
        (["--predictions", "near", "--truth", "truth", "--out", "o", "--groups", "none.csv"], "none.csv"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(masks, capsys, arguments, said):
    (masks / "none.txt").write_text("")
    before = sorted(masks.rglob("*"))
    assert cli.main(["evaluate", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("asegnet-fast: ") and said in lines[0]
    assert sorted(masks.rglob("*")) == before


def test_help_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["evaluate", "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
