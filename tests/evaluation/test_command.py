"""`asegnet-fast evaluate` as a user types it."""

import csv
import json

import numpy as np
import pytest
import torch

from asegnet_fast import cli
from asegnet_fast.evaluation import pixel_counts
from asegnet_fast.files import read_json
from asegnet_fast.inference import load_ensemble
from asegnet_fast.training.crossval import load_data, read_run, summarise_run
from tests.data_sets import blob_mask, write
from tests.program_runs import data_folder, finished_run

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
    assert (comparison["first"], comparison["second"]) == ("near", "far in far_out")
    direct = masks / "direct"
    run("--predictions", "near", "--truth", "truth", "--out", direct, "--compare", "far")
    assert content(direct)["comparisons"][0]["measures"] == comparison["measures"]


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
        ([], "RUN, --predictions, --checkpoint: expected one of them, got none"),
        (["run", "--predictions", "near"], "got RUN and --predictions"),
        (["run", "--truth", "truth"], "--truth: expected together with --predictions, got it alone"),
        (["run", "--groups", "none.csv"], "--groups: expected no table"),
        (
            ["--predictions", "near", "--out", "o"],
            "--truth: expected together with --predictions, got --pred",
        ),
        (["--checkpoint", "none.pt", "--out", "o"], "--data: expected together with --checkpoint"),
        (["--checkpoint", "none.pt", "--data", "d", "--out", "o"], "none.pt: expected a checkpoint"),
        (
            ["--checkpoint", "x", "--data", "d", "--out", "o", "--slices", "some"],
            "--slices: expected one of auto",
        ),
        (["--checkpoint", "x", "--data", "d", "--out", "o", "--device", "tpu"], "--device: expected"),
        (["--checkpoint", "x", "--data", "d", "--out", "o", "--precision", "fp8"], "--precision: expected"),
        (["--predictions", "near", "--truth", "truth"], "--out: expected a folder"),
        (
            ["--predictions", "near", "--truth", "truth", "--out", "none.txt"],
            "--out: expected a folder, got",
        ),
        (["nothing"], "nothing: expected a folder with a run"),
        (
            ["--predictions", "nothing", "--truth", "truth", "--out", "o"],
            "--predictions: expected a NIfTI file",
        ),
        (
            ["--predictions", "near", "--truth", "truth", "--out", "o", "--compare", "no"],
            "--compare: expected a NIfTI file",
        ),
        (
            ["--predictions", "near", "--truth", "truth", "--out", "o", "--compare", "near"],
            "expected other masks",
        ),
        (["--predictions", "near", "--truth", "truth", "--out", "o", "--compare", "none.txt"], "none.txt"),
        (["run", "--labels", "both"], "--labels: expected one of merge, keep, got 'both'"),
        (["run", "--select", "some"], "--select: expected one of all, lesion"),
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


def test_a_row_of_a_run_predicts_its_own_test_slices(tmp_path):
    rows = [row["folder"] for row in summarise_run(finished_run())["rows"]]
    arguments = ["--data", data_folder(), "--device", "cpu"]
    run(
        "--checkpoint",
        finished_run() / rows[0],
        *arguments,
        "--compare",
        finished_run() / rows[1],
        "--out",
        tmp_path,
    )
    evaluation = content(tmp_path)
    assert (
        evaluation["source"]["test_slices_only"] and "test slices of each network" in evaluation["measured"]
    )
    row, _ = evaluation["records"]
    # Every test slice of every fold once, as the run itself has it.
    (theirs, *_) = content_of_run(tmp_path / "run")
    places = [
        sorted((case["name"], case["indices"], case["folds"]) for case in record["cases"])
        for record in (row, theirs)
    ]
    assert places[0] == places[1]
    # The run counts on 32 x 32 pixels, here it is the file's 48 x 48: nearly the same Dice, and millimetres besides.
    ours, run_dice = (r["summary"]["measures"]["dice"]["pooled"]["value"] for r in (row, theirs))
    assert ours == pytest.approx(run_dice, abs=0.1)
    assert row["summary"]["measures"]["hd95"]["per_volume_mean"]["value"] > 0
    assert evaluation["comparisons"][0]["measures"]["dice"]["per_fold"]["pairs"] == 2


def test_at_the_networks_own_size_its_counts_are_the_runs():
    """What predicts here is what training measured: asked for its own pixels, it gives the same counts."""
    row = summarise_run(finished_run())["rows"][1]["folder"]
    settings, _ = read_run(finished_run())
    data = load_data(settings)
    fold = read_json(finished_run() / row / "fold0" / "metrics.json")
    ensemble = load_ensemble([finished_run() / row / "fold0" / "checkpoint_last.pt"])
    test = fold["test_indices"]
    shape = data.images.shape[1:]
    answers = torch.stack([p.labels for p in ensemble(data.images[test], shape, False)])
    assert pixel_counts(answers, torch.from_numpy(data.masks[test]), 2).tolist() == fold["counts"]


def test_one_checkpoint(tmp_path):
    row = summarise_run(finished_run())["rows"][0]["folder"]
    checkpoint = finished_run() / row / "fold1" / "checkpoint_last.pt"
    arguments = ["--checkpoint", checkpoint, "--data", data_folder(), "--device", "cpu"]
    run(*arguments, "--out", tmp_path / "test")
    test = content(tmp_path / "test")
    assert {fold for case in test["records"][0]["cases"] for fold in case["folds"]} == {1}
    run(*arguments, "--out", tmp_path / "all", "--slices", "all", "--select", "all")
    everything = content(tmp_path / "all")
    assert len(everything["records"][0]["cases"]) == 4 > len(test["records"][0]["cases"])
    assert any("trained on" in note for note in everything["notes"])
    # Away from its run a checkpoint has no test slices.
    alone = tmp_path / "alone" / "alone" / "alone.pt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(checkpoint.read_bytes())
    arguments[1] = alone
    assert (
        cli.main(["evaluate", *map(str, arguments), "--out", str(tmp_path / "no"), "--slices", "test"]) == 2
    )
    run(*arguments, "--out", tmp_path / "external")
    assert content(tmp_path / "external")["source"]["test_slices_only"] is False


def content_of_run(out):
    run(finished_run(), "--out", out)
    return content(out)["records"]
