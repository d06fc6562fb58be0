"""Cross-validation: its files, its resumption, its refusals, and that it learns."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import asegnet_fast as af
from asegnet_fast.checkpoint import load_network, normalised, read_checkpoint
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.overlap import pixel_counts
from asegnet_fast.training.config import Row
from asegnet_fast.training.crossval import cross_validate, load_data, summarise_run
from asegnet_fast.training.losses import Loss
from asegnet_fast.training.profile import outside_convolution
from asegnet_fast.training.split import inner_split
from asegnet_fast.training.steps import initial_network
from tests.program_runs import finished_run, quiet, run, settings, snapshot

ROW = "segnet--ftl-a0.3-b0.7-g1.3333"


class StopAfter:
    """A reporter that presses Ctrl-C after an epoch of a fold."""

    def __init__(self, epoch):
        self.epoch = epoch

    def say(self, text): ...

    def folds(self, *position): ...

    def step(self, *position): ...

    def epochs(self, done, total, record, name):
        # The checkpoint of an epoch is written after it is reported, so stop at the next one's report.
        if done == self.epoch + 1:
            raise KeyboardInterrupt


def test_files_of_a_run():
    out = finished_run()
    names = {path.name for path in out.iterdir()}
    rows = {f"{m}--{loss}" for m in ("segnet", "a_segnet") for loss in ("dl", "ftl-a0.3-b0.7-g1.3333")}
    assert names == {"config.json", "folds.json", "summary.json"} | rows
    for row in rows:
        for fold in range(2):
            found = {path.name for path in (out / row / f"fold{fold}").iterdir()}
            assert found == {"checkpoint_last.pt", "history.csv", "metrics.json"}
    with open(out / ROW / "fold0" / "history.csv", newline="") as stream:
        history = list(csv.DictReader(stream))
    assert [line["epoch"] for line in history] == ["1", "2", "3"]


def test_summary_has_the_fixed_keys_and_shares():
    summary = json.loads((finished_run() / "summary.json").read_text())
    assert {"rows", "split", "leak_percent", "environment", "trivial"} <= set(summary)
    assert summary["split"] == "patient" and summary["leak_percent"] == 0
    assert len(summary["rows"]) == 4
    for row in summary["rows"]:
        assert {"model", "loss", "alpha", "beta", "gamma", "folds", "paper"} <= set(row)
        for measure in ("dice", "sensitivity", "specificity"):
            assert set(row[measure]) == {"pooled", "per_image_mean", "per_fold_mean", "per_fold_sd"}
            assert 0 <= row[measure]["pooled"] <= 1
    ftl = next(row for row in summary["rows"] if row["model"] == "a_segnet" and row["loss"] == "ftl")
    assert ftl["paper"]["dice"] == 0.8961 and ftl["gamma"] == pytest.approx(4 / 3)


def test_metrics_are_those_of_the_last_checkpoint():
    out = finished_run()
    slices = load_data(settings(out))
    tested = []
    for fold in range(2):
        metrics = json.loads((out / ROW / f"fold{fold}" / "metrics.json").read_text())
        content = read_checkpoint(out / ROW / f"fold{fold}" / "checkpoint_last.pt")
        indices = metrics["test_indices"]
        with torch.inference_mode():
            inputs = normalised(torch.from_numpy(slices.images[indices]), content["normalisation"])
            labels = load_network(content)(inputs).argmax(1)
        counts = pixel_counts(labels, torch.from_numpy(slices.masks[indices]), 2)
        # Another batch size may round a tie between the classes the other way.
        assert np.abs(np.array(metrics["counts"]) - counts.numpy()).max() <= 2
        tested += indices
    assert sorted(tested) == list(range(len(slices.images)))


def test_normalisation_sees_the_training_part_only():
    out = finished_run()
    slices = load_data(settings(out))
    metrics = json.loads((out / ROW / "fold1" / "metrics.json").read_text())
    train = np.setdiff1d(np.arange(len(slices.images)), metrics["test_indices"])
    found = read_checkpoint(out / ROW / "fold1" / "checkpoint_last.pt")["normalisation"]
    assert found["mean"] == pytest.approx(slices.images[train].mean(dtype=np.float64))
    assert found["sd"] == pytest.approx(slices.images[train].std(dtype=np.float64), rel=1e-4)


def test_rows_start_from_the_same_weights(tmp_path):
    wanted = settings(tmp_path)
    first = initial_network(wanted, "segnet", 2, 0).state_dict()
    again = initial_network(wanted, "segnet", 2, 0).state_dict()
    other = initial_network(wanted, "segnet", 2, 1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    changes = {"models": ("segnet",)}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", reporter=StopAfter(1), **changes)
    stopped = tmp_path / "stopped" / ROW / "fold0"
    assert read_checkpoint(stopped / "checkpoint_last.pt")["epoch"] == 1
    assert not (stopped / "metrics.json").exists()
    summary, _ = run(tmp_path / "stopped", resume=True, **changes)
    whole, _ = run(tmp_path / "whole", **changes)

    assert [row["dice"] for row in summary["rows"]] == [row["dice"] for row in whole["rows"]]
    for fold in ("fold0", "fold1"):
        states = [
            read_checkpoint(tmp_path / name / ROW / fold / "checkpoint_last.pt")["state_dict"]
            for name in ("stopped", "whole")
        ]
        for key in states[0]:
            assert torch.equal(states[0][key], states[1][key]), key


def test_a_resumed_run_draws_what_a_kill_left_undrawn(tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run(), out)
    wanted = settings(out, losses=("dl", "ftl:0.3:0.7:4/3"))
    drawn = []
    cross_validate(wanted, load_data(wanted), quiet(), True, lambda folder, row: drawn.append(folder))
    assert len(drawn) == 8


def test_resume_keeps_finished_folds_and_runs_missing_ones(tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run(), out)
    kept = (out / ROW / "fold0" / "metrics.json").stat().st_mtime_ns
    (out / ROW / "fold1" / "metrics.json").unlink()
    before = json.loads((out / "summary.json").read_text())
    partial = summarise_run(out)
    assert next(row for row in partial["rows"] if row["folder"] == ROW)["folds"] == 1
    summary, given_up = run(out, resume=True, losses=("dl", "ftl:0.3:0.7:4/3"))
    assert given_up == []
    assert (out / ROW / "fold0" / "metrics.json").stat().st_mtime_ns == kept
    assert [row["dice"] for row in summary["rows"]] == [row["dice"] for row in before["rows"]]


@pytest.mark.parametrize(
    ("changes", "resume", "said"),
    [
        ({}, False, "--resume"),
        ({"epochs": 4}, True, "epochs: 3 there, 4 asked"),
        ({"select": "all"}, True, "select: lesion there, all asked"),
    ],
)
def test_a_run_is_not_written_over(changes, resume, said):
    out = finished_run()
    before = snapshot(out)
    with pytest.raises(ValueError, match=said):
        run(out, resume=resume, **({"losses": ("dl", "ftl:0.3:0.7:4/3")} | changes))
    assert snapshot(out) == before


def test_other_data_are_refused(tmp_path):
    from asegnet_fast.data import write_phantom

    other = write_phantom(tmp_path / "data", patients=4, slices_per_patient=8, size=48, seed=4)
    with pytest.raises(ValueError, match=r"data: slices with the fingerprint \w+ there, \w+ asked"):
        run(finished_run(), resume=True, losses=("dl", "ftl:0.3:0.7:4/3"), data=str(other))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="with other files in it"):
        run(tmp_path)
    assert snapshot(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "other fold"])
def test_a_bad_checkpoint_is_named(tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(finished_run(), out)
    fold = out / ROW / "fold0"
    (fold / "metrics.json").unlink()
    checkpoint = fold / "checkpoint_last.pt"
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    elif damage == "text":
        checkpoint.write_text("not a checkpoint")
    elif damage == "foreign":
        torch.save({"state_dict": {}}, checkpoint)
    else:
        shutil.copy(out / ROW / "fold1" / "checkpoint_last.pt", checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint_last\.pt: expected") as caught:
        run(out, resume=True, losses=("dl", "ftl:0.3:0.7:4/3"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"format": "asegnet_fast checkpoint 1", "trap": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"trap\.pt"):
        read_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_loss_that_is_not_finite_gives_up_the_fold(tmp_path, monkeypatch):
    real = af.nn.FocalTverskyLoss.forward
    calls = []

    def breaks(self, *args):
        calls.append(0)
        loss = real(self, *args)
        return loss * float("nan") if len(calls) == 2 else loss

    monkeypatch.setattr(af.nn.FocalTverskyLoss, "forward", breaks)
    summary, given_up = run(tmp_path, models=("segnet",))
    assert len(given_up) == 1
    assert given_up[0].startswith(f"{ROW}/fold0: expected a finite loss, got nan at epoch 1, step 2")
    assert summary["rows"][0]["folds"] == 1
    assert not (tmp_path / ROW / "fold0" / "metrics.json").exists()


def test_best_checkpoint_needs_an_inner_validation(tmp_path):
    run(tmp_path, models=("segnet",), inner_validation=0.3)
    metrics = json.loads((tmp_path / ROW / "fold0" / "metrics.json").read_text())
    best = read_checkpoint(tmp_path / ROW / "fold0" / "checkpoint_best.pt")
    assert best["epoch"] == metrics["inner_validation"]["epoch"]
    assert metrics["inner_validation"]["slices"] > 0
    assert not (finished_run() / ROW / "fold0" / "checkpoint_best.pt").exists()


def test_inner_split_keeps_groups_whole():
    groups = np.array(["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4)
    train = np.arange(4, 16)
    fit, inner = inner_split(train, groups, 0.3, True, 0)
    assert sorted([*fit, *inner]) == list(train)
    assert not set(groups[fit]) & set(groups[inner])
    assert len(inner) == 4
    with pytest.raises(ValueError, match="--inner-validation"):
        inner_split(train[:4], groups, 0.3, True, 0)


def test_a_batch_larger_than_the_fold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--batch-size: expected at most"):
        run(tmp_path, batch_size=1000)


def test_labels_kept_apart_are_averaged_over_classes(tmp_path):
    summary, _ = run(tmp_path, models=("segnet",), labels="keep", epochs=1)
    row = summary["rows"][0]
    assert len(row["classes"]) == len(summary["data"]["label_values"]) == 2
    mean = np.mean([entry["dice"]["pooled"] for entry in row["classes"]])
    assert row["dice"]["pooled"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("loss", ["ce", "dl", "dl-literal", "gdl", "tl:0.3:0.7", "ftl:0.3:0.7:4/3"])
def test_every_loss_trains(tmp_path, loss):
    summary, given_up = run(tmp_path, models=("segnet",), losses=(loss,), epochs=1)
    assert given_up == [] and summary["rows"][0]["loss"] == loss.partition(":")[0]


def test_dense_sections_train(tmp_path):
    summary, given_up = run(tmp_path, models=("a_segnet",), losses=("dl",), epochs=1, block="dense", growth=4)
    assert given_up == [] and len(summary["rows"]) == 1
    content = read_checkpoint(tmp_path / "a_segnet--dl" / "fold0" / "checkpoint_last.pt")
    assert content["network"]["block"] == "dense"
    assert load_network(content).decoders[0][-1].conv.kernel_size == (1, 1)


def test_training_learns(tmp_path):
    run(tmp_path, models=("segnet",), losses=("ce",), epochs=12, precision="bf16")
    with open(tmp_path / "segnet--ce" / "fold0" / "history.csv", newline="") as stream:
        losses = [float(line["loss"]) for line in csv.DictReader(stream)]
    assert losses[-1] < 0.5 * losses[0]


def test_share_outside_convolutions(tmp_path):
    from asegnet_fast.training.steps import Slices

    wanted = settings(tmp_path)
    data = load_data(wanted)
    slices = Slices(torch.from_numpy(data.images), torch.from_numpy(data.masks), np.array(data.groups), 2)
    share = outside_convolution(wanted, Row("segnet", Loss.parse("dl")), slices, np.arange(8))
    assert 0 < share["share"] < 1 and share["clock"] == "self CPU time"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{}"),
        ("config.json", "[" * 5000),
        ("config.json", '{"settings": [], "data": {}, "environment": {}}'),
        ("folds.json", "{}"),
        (f"{ROW}/fold0/metrics.json", "{"),
        (f"{ROW}/fold0/metrics.json", "{}"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text):
    out = tmp_path / "run"
    shutil.copytree(finished_run(), out)
    (out / file).write_text(text)
    with pytest.raises(InputError) as caught:
        run(out, resume=True, losses=("dl", "ftl:0.3:0.7:4/3"))
    assert file.rpartition("/")[2] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "settings", {"epochs": 3}),
        ("config.json", "settings", {"data": "d", "epochs": "many"}),
        ("config.json", "settings", {"data": "d", "colour": "red"}),
        (f"{ROW}/fold0/metrics.json", "counts", [[1, 2]]),
        (f"{ROW}/fold0/metrics.json", "counts", "none"),
        (f"{ROW}/fold0/metrics.json", "counts", [[[1, 2, 3, -4]]]),
        (f"{ROW}/fold0/metrics.json", "test_indices", []),
        ("folds.json", "seed", 7),
    ],
)
def test_a_file_with_a_wrong_value_is_named(tmp_path, file, key, value):
    out = tmp_path / "run"
    shutil.copytree(finished_run(), out)
    content = json.loads((out / file).read_text())
    (out / file).write_text(json.dumps(content | {key: value}))
    with pytest.raises(InputError, match=file.rpartition("/")[2].replace(".", r"\.")):
        run(out, resume=True, losses=("dl", "ftl:0.3:0.7:4/3"))
