"""`asegnet-fast train`: one model on all slices or on all but one fold's."""

import json
import shutil

import pytest
import torch

import asegnet_fast.cli as cli
from asegnet_fast.checkpoint import load_network, read_checkpoint
from asegnet_fast.files import read_csv
from asegnet_fast.training.claims import Watch
from asegnet_fast.training.progress import Reporter
from tests.program_runs import TINY, data_folder, finished_run, snapshot

MODEL = ["--model", "segnet", "--loss", "dl"]


def train(out, *options, epochs=3):
    return cli.main(
        [
            "train",
            "--data",
            data_folder(),
            "--out",
            str(out),
            *TINY,
            *MODEL,
            "--epochs",
            str(epochs),
            *options,
        ]
    )


def files_of(out):
    return {path.name for path in out.iterdir()}


def test_on_all_slices_then_resumed(tmp_path, monkeypatch, capsys):
    assert train(tmp_path / "whole") == 0
    whole = tmp_path / "whole"
    assert files_of(whole) == {
        "config.json",
        "checkpoint_last.pt",
        "history.csv",
        "metrics.json",
        "progress.png",
    }
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["training_slices"] == json.loads((whole / "config.json").read_text())["data"]["slices"]
    assert metrics["counts"] == [] and "dice" not in metrics
    assert set(read_csv(whole / "history.csv")[0]) == {"epoch", "lr", "loss", "seconds"}
    assert "(all slices)" in capsys.readouterr().out
    network = load_network(read_checkpoint(whole / "checkpoint_last.pt"))
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)

    def stop(self, done, *rest):
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "epochs", stop)
        assert train(out, "--checkpoint-seconds", "0") == 130
    assert "--resume" in capsys.readouterr().out
    assert train(out, "--checkpoint-seconds", "0") == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert train(out, "--resume") == 0
    assert (out / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    states = [read_checkpoint(run / "checkpoint_last.pt")["state_dict"] for run in (whole, out)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert train(out, "--resume", "--lr", "0.2") == 2
    assert "lr: 0.1 there, 0.2 asked" in capsys.readouterr().err
    assert train(out, "--resume", "--fold", "0") == 2
    assert "fold: None there, 0 asked" in capsys.readouterr().err


def test_a_fold_is_the_cross_validations(tmp_path, capsys):
    """The same folds, the same start, the same order: the model of that fold, bit for bit."""
    there = finished_run() / "segnet--dl" / "fold1"
    assert train(tmp_path / "drawn", "--fold", "1") == 0
    assert "dice  " in capsys.readouterr().out
    options = ["--fold", "1", "--folds-file", str(finished_run() / "folds.json")]
    without_folds = [word for word in TINY if word != "--folds"]
    without_folds.remove("2")
    command = ["train", "--data", data_folder(), "--out", str(tmp_path / "given"), *without_folds, *MODEL]
    assert cli.main([*command, "--epochs", "3", *options]) == 0
    expected = read_checkpoint(there / "checkpoint_last.pt")["state_dict"]
    counts = json.loads((there / "metrics.json").read_text())["counts"]
    for name in ("drawn", "given"):
        found = read_checkpoint(tmp_path / name / "checkpoint_last.pt")["state_dict"]
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert json.loads((tmp_path / name / "metrics.json").read_text())["counts"] == counts
        assert (tmp_path / name / "folds.json").read_bytes() == (finished_run() / "folds.json").read_bytes()


def test_a_run_of_another_kind_is_left_alone(tmp_path, capsys):
    before = snapshot(finished_run())
    assert train(finished_run(), "--resume") == 2
    assert "expected a run of asegnet-fast train, got one of asegnet-fast crossval" in capsys.readouterr().err
    assert snapshot(finished_run()) == before


def test_two_processes_do_not_train_one_model(tmp_path, capsys):
    assert train(tmp_path, epochs=1) == 0
    (tmp_path / "metrics.json").unlink()
    claim = Watch().take(tmp_path)
    assert train(tmp_path, "--resume", epochs=1) == 1
    assert "another process trains in" in capsys.readouterr().err
    claim.release()
    assert train(tmp_path, "--resume", epochs=1) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "unet"], "--model: expected one of segnet, a_segnet, got 'unet'"),
        (["--loss", "dice"], "--loss: expected ce, dl"),
        (["--loss", "dl,gdl"], "--loss: expected ce, dl"),
        (["--fold", "2"], "--fold: expected a whole number from 0 to 1, got 2"),
        (["--fold", "x"], "--fold: expected a whole number from 0, got 'x'"),
        (["--folds-file", "f.json"], "--folds-file: expected no --folds beside it, got both"),
        (["--augment", "spin"], "--augment: expected flips"),
        (
            ["--early-stopping", "3"],
            "--early-stopping: expected --inner-validation above 0 beside it, got '3 alone'",
        ),
        (["--batch-size", "1000"], "--batch-size: expected at most"),
        (["--models", "segnet"], "--models"),
    ],
)
def test_wrong_options_are_one_line_and_leave_no_folder(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train("run", *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("{}", "expected a file of folds"),
        ('{"split": "patient", "k": 2}', "expected a file of"),
    ],
)
def test_a_wrong_folds_file_is_named(text, said, tmp_path, capsys):
    file = tmp_path / "folds.json"
    if text is not None:
        file.write_text(text)
    command = [
        "train",
        "--data",
        data_folder(),
        "--out",
        str(tmp_path / "run"),
        "--size",
        "32",
        "--widths",
        "4,8",
    ]
    command += ["--convs", "1,1", "--device", "cpu", *MODEL, "--fold", "0", "--folds-file", str(file)]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "folds.json" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_folds_of_other_data_are_refused(tmp_path, capsys):
    shutil.copy(finished_run() / "folds.json", tmp_path / "folds.json")
    text = json.loads((tmp_path / "folds.json").read_text())
    (tmp_path / "folds.json").write_text(json.dumps(text | {"fingerprint": "0" * 64}))
    command = [
        "train",
        "--data",
        data_folder(),
        "--out",
        str(tmp_path / "run"),
        "--size",
        "32",
        "--widths",
        "4,8",
    ]
    command += ["--convs", "1,1", "--device", "cpu", *MODEL, "--fold", "0"]
    assert cli.main([*command, "--folds-file", str(tmp_path / "folds.json")]) == 2
    assert "expected folds of this data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_single_model_from_a_file_of_options(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("models: [segnet]\nlosses: [gdl]\nepochs: 1\naugment: flips\n")
    out = tmp_path / "run"
    assert cli.main(["train", "--config", str(file), "--data", data_folder(), "--out", str(out), *TINY]) == 0
    content = read_checkpoint(out / "checkpoint_last.pt")
    assert content["model"] == "segnet" and content["settings"]["losses"] == ["gdl"]
