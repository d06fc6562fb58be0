"""The program as a user types it: what it writes, prints and returns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asegnet_fast.cli as cli
from asegnet_fast.environment import precision_note
from tests.program_runs import SMALL, TINY, data_folder, finished_run, snapshot

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", [[], ["crossval"], ["train"], ["tune"], ["demo"], ["report"], ["info"]])
def test_help_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: asegnet-fast" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["crossval", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["report"], "RUN"),
        (["crossval", "--epochs", "x"], "--epochs"),
        (["crossval", "--out", "o"], "--data: expected a folder, got nothing"),
        (["crossval", "--data", "d", "--out", "o", "--losses", "dice"], "--losses: expected ce"),
        (
            ["crossval", "--data", "d", "--out", "o", "--split", "both"],
            "--split: expected one of patient, slice",
        ),
        (["crossval", "--data", "d", "--out", "o", "--device", "tpu"], "--device: expected"),
        (["crossval", "--data", "no-such-folder", "--out", "o"], "no-such-folder"),
        (["crossval", "--config", "none.yaml"], "none.yaml"),
        (["report", "no-such-run"], "no-such-run: expected a folder with a run"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("asegnet-fast: ") and said in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "x"], "--epochs: expected a whole number, got 'x'"),
        (["--lr", "x"], "--lr: expected a number, got 'x'"),
        (["--size", "5000"], "--size: expected a whole number from 1 to 4096, got 5000"),
        (["--epochs", "9" * 20], "--epochs: expected a whole number from 1 to 1000000"),
        (["--out", ""], "--out: expected a path, got ''"),
        (["--data", ""], "--data: expected a path, got ''"),
        (["--device", "cuda:²"], "--device: expected auto"),
        # What only the network or the data can tell is refused before the run's folder is made, too: it would
        # stand in the way of the corrected command.
        (["--widths", "4,8,16"], "--widths, --convs: convs: expected as many entries"),
        (["--size", "3"], "--size: expected at least 4, because each of the 2 sections halves it, got 3"),
        (["--batch-size", "1000"], "--batch-size: expected at most"),
        (["--folds", "100"], "folds: expected 2 to 4"),
        (
            ["--folds", "4", "--inner-validation", "0.5", "--batch-size", "12"],
            "--batch-size: expected at most",
        ),
    ],
)
def test_a_refused_run_leaves_no_folder(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["crossval", "--data", data_folder(), "--out", "run", *TINY, *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_out_in_place_of_a_file(out, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in (["crossval", "--data", data_folder(), *TINY], ["demo"]):
        assert cli.main([*command, "--out", str(tmp_path / out)]) == 2
        assert "--out: expected a" in capsys.readouterr().err
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_demo_resumes_only_a_demo(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["demo", "--out", str(tmp_path), "--resume"]) == 2
    assert "with other files" in capsys.readouterr().err
    assert list(snapshot(tmp_path)) == ["thesis.txt"]


def test_a_fault_of_the_program_is_told_apart_from_bad_input(capsys, monkeypatch):
    def broken(*_):
        raise ValueError("no user's doing")

    monkeypatch.setattr(cli.crossval, "read_settings", broken)
    monkeypatch.delenv("ASEGNET_FAST_TRACEBACK", raising=False)
    assert cli.main(["crossval"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "ValueError: no user's doing (test_cli.py:" in lines[0]
    monkeypatch.setenv("ASEGNET_FAST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no user's doing"):
        cli.main(["crossval"])


def test_report_of_a_single_model_says_what_it_is(capsys, tmp_path):
    shutil.copytree(finished_run(), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({"kind": "train"} | config))
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "expected a run of asegnet-fast crossval, got one of asegnet-fast train" in capsys.readouterr().err


def test_crossval_from_a_file_then_report(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: {data_folder()}\nepochs: 5\nlosses: [dl]\nmodels: [segnet]\nwidths: [4, 8]\nconvs: [1, 1]\n"
    )
    out = tmp_path / "run"
    options = ["--size", "32", "--folds", "2", "--batch-size", "4", "--device", "cpu"]
    command = ["crossval", "--config", str(file), "--out", str(out), "--epochs", "2", *options, "--profile"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "SegNet" in printed and "lesion everywhere" in printed and "outside convolutions" in printed
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert settings["epochs"] == 2 and settings["losses"] == ["dl"]
    expected = {"data_samples.png", "qualitative.png", "training_curves.svg", "folds--segnet--dl.svg"}
    expected |= {f"comparison-{measure}.svg" for measure in ("dice", "sensitivity", "specificity")}
    assert {path.name for path in (out / "figures").iterdir()} == expected
    assert (out / "segnet--dl" / "fold1" / "progress.png").exists()

    before = snapshot(out)
    for name in ("table1.md", "table1.csv", "summary.json", "report.html", "figures/qualitative.png"):
        (out / name).unlink()
    assert cli.main(["report", str(out)]) == 0
    after = snapshot(out)
    assert after == before

    capsys.readouterr()
    assert cli.main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0


def test_report_needs_the_runs_own_data(tmp_path, capsys):
    from asegnet_fast.data import write_phantom

    other = write_phantom(tmp_path / "other", patients=4, slices_per_patient=8, size=48, seed=9)
    shutil.copytree(finished_run(), tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run"), "--data", str(other)]) == 2
    assert "got other slices" in capsys.readouterr().err


def test_demo_makes_data_and_a_table_and_is_not_written_over(tmp_path, monkeypatch, capsys):
    small = {key: value for key, value in SMALL.items() if key != "checkpoint_seconds"}
    monkeypatch.setattr(cli.demo, "DEMO", cli.demo.DEMO | small | {"epochs": 1})
    monkeypatch.setattr(cli.demo, "DEMO_DATA", {"patients": 4, "slices_per_patient": 8, "size": 48})
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert (tmp_path / "demo" / "run" / "report.html").stat().st_size > 100_000
    summary = json.loads((tmp_path / "demo" / "run" / "summary.json").read_text())
    assert {row["model"] for row in summary["rows"]} == {"segnet", "a_segnet"}
    capsys.readouterr()
    before = snapshot(tmp_path)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_ctrl_c_leaves_a_run_to_resume(tmp_path, monkeypatch, capsys):
    from asegnet_fast.training.progress import Reporter

    command = ["crossval", "--data", data_folder(), "--out", str(tmp_path / "run"), "--epochs", "2", *TINY]
    command += ["--models", "segnet"]

    def stop(self, done, *rest):
        if done == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "epochs", stop)
        assert cli.main(command) == 130
    assert "--resume" in capsys.readouterr().out
    assert cli.main([*command, "--resume"]) == 0


def test_a_given_up_fold_is_status_1(tmp_path, capsys):
    command = ["crossval", "--data", data_folder(), "--out", str(tmp_path), "--epochs", "4", *TINY]
    # A step this long overflows float32 within an epoch.
    assert cli.main([*command, "--models", "segnet", "--losses", "ce", "--lr", "1e38"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "segnet--ce/fold0: expected a finite loss, got" in lines[0]


def test_info_says_what_serves_each_op(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "max_pool2x2 on cpu: served by" in text


def test_python_dash_m():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "asegnet_fast", "--nonsense"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--nonsense" in done.stderr


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_without_bf16_convolutions_is_told(supported, monkeypatch):
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: supported)
    note = precision_note("bf16", "cpu")
    assert (note is None) == supported
    assert supported or "fp32" in note
    assert precision_note("fp32", "cpu") is None and precision_note("bf16", "cuda") is None
