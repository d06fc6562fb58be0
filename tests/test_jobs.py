"""Folds shared by several processes: each trained once, to the same bits as by one process alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asegnet_fast.checkpoint import read_checkpoint
from asegnet_fast.errors import InputError
from asegnet_fast.training.config import Settings
from asegnet_fast.training.crossval import cross_validate, load_data
from asegnet_fast.training.jobs import Sharing
from tests.processes import apart, together
from tests.program_runs import SMALL, finished_run, run

LOSSES = ("dl", "ftl:0.3:0.7:4/3")  # of `finished_run`
ROOT = Path(__file__).parent.parent


class Listener:
    """A reporter that keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def folds(self, *position): ...

    def step(self, *position): ...

    def epochs(self, *position): ...

    def trained(self):
        """The names of the folds that this process has trained."""
        return [text.split()[0] for text in self.said if "  Dice " in text]


def run_listening(number, out, data, **changes):
    """Cross-validate in another process; returns (rows of the summary, folds trained here, what was said)."""
    listener = Listener()
    wanted = Settings(**({"data": data, "out": str(out)} | SMALL | changes))
    summary, given_up = cross_validate(wanted, load_data(wanted), listener, True)
    assert given_up == []
    return summary and summary["rows"], listener.trained(), listener.said


def assert_same_run(found: Path, expected: Path):
    """Both hold the same weights and metrics, bit for bit; only times may differ."""

    def files(run):
        return {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}

    assert files(found) == files(expected)
    for path in expected.rglob("checkpoint_last.pt"):
        ours, theirs = (read_checkpoint(run / path.relative_to(expected)) for run in (found, expected))
        for key in ("state_dict", "normalisation", "epoch"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
    for path in expected.rglob("metrics.json"):
        ours, theirs = (
            json.loads((run / path.relative_to(expected)).read_text()) for run in (found, expected)
        )
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def data_of(out):
    return json.loads((out / "config.json").read_text())["settings"]["data"]


def test_three_processes_at_once_train_each_fold_once(tmp_path):
    expected = finished_run()
    out = tmp_path / "run"
    found = apart(3, run_many, out, data_of(expected))
    trained = [name for _, names, _ in found for name in names]
    assert len(trained) == 8 and len(set(trained)) == 8
    assert_same_run(out, expected)
    summary = json.loads((expected / "summary.json").read_text())
    for rows, _, _ in found:
        assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in summary["rows"]]


def run_many(number, out, data):
    return run_listening(number, out, data, losses=LOSSES)


KILLED = """
import sys
from tests.test_jobs import Listener, run_listening

class Stops(Listener):
    def epochs(self, done, total, record, name):
        if done == 2:  # one epoch lies in the checkpoint
            print("now", flush=True)
            sys.stdin.read()

import tests.test_jobs
tests.test_jobs.Listener = Stops
run_listening(0, sys.argv[1], sys.argv[2], models=("segnet",))
"""


def test_a_fold_whose_process_was_killed_is_taken_over(tmp_path):
    expected = finished_run()
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), data_of(expected)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout.readline() == b"now\n"
    # While it lives, others leave its fold alone, and do the other one.
    assert run(out, resume=True, models=("segnet",), sharing=Sharing(wait=False))[0] is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    elsewhere = shutil.copytree(out, tmp_path / "elsewhere")
    (claim,) = elsewhere.rglob("claim-*.json")  # of a process on another machine only its silence tells
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"host": "elsewhere"}))
    for folder in (out, elsewhere):
        listener = Listener()
        summary, _ = run(folder, True, listener, models=("segnet",), sharing=Sharing(stale_seconds=0.5))
        waited = any("waits for 1 folds of others: elsewhere" in text for text in listener.said)
        assert waited == (folder == elsewhere)
        assert any("goes on after epoch 1" in text for text in listener.said)
        assert summary["rows"][0]["folds"] == 2 and not list(folder.rglob("claim-*"))
        for path in folder.rglob("checkpoint_last.pt"):
            ours, theirs = (read_checkpoint(run / path.relative_to(folder)) for run in (folder, expected))
            torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)


@pytest.mark.extended
def test_workers_of_one_command(tmp_path):
    expected = finished_run()
    listener, out = Listener(), tmp_path / "run"
    wanted = Settings(**({"data": data_of(expected), "out": str(out)} | SMALL | {"losses": LOSSES}))
    summary, given_up = cross_validate(wanted, load_data(wanted), listener, workers=2)
    assert given_up == [] and sum(row["folds"] for row in summary["rows"]) == 8
    trained = [text.split()[1] for text in listener.said if "  Dice " in text]
    assert len(trained) == 8 == len(set(trained))
    assert {text[:3] for text in listener.said if "  Dice " in text} == {"[1]", "[2]"}
    found = {str(p.relative_to(out)) for p in out.rglob("*")}
    assert found == {str(p.relative_to(expected)) for p in expected.rglob("*")}


def test_a_given_up_fold_is_left_until_nobody_works(tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run(), out)
    fold = out / "segnet--dl" / "fold0"
    metrics = json.loads((fold / "metrics.json").read_text())
    (fold / "metrics.json").unlink()
    note = fold / "given_up.json"
    note.write_text(json.dumps({"identity": metrics["identity"], "error": "segnet--dl/fold0: too wild"}))
    claim = out / "a_segnet--dl" / "fold0" / "claim-1.json"
    claim.write_text(json.dumps({"host": "h", "boot": "b", "pid": 1, "began": "", "token": "t"}))
    _, given_up = run(out, resume=True, losses=LOSSES)
    assert given_up == ["segnet--dl/fold0: too wild"] and note.exists()
    claim.unlink()
    _, given_up = run(out, resume=True, losses=LOSSES)
    assert given_up == [] and not note.exists()


def test_a_run_begun_twice_without_resume_is_refused(tmp_path, monkeypatch):
    from asegnet_fast.training import crossval

    real, out = crossval.create_json, tmp_path / "run"

    def second(path, content):
        """Another process makes the same run at the last moment."""
        assert real(path, content)
        return real(path, content)

    monkeypatch.setattr(crossval, "create_json", second)
    with pytest.raises(InputError, match="continue it with --resume"):
        run(out, models=("segnet",))
    shutil.rmtree(out)
    assert run(out, True, models=("segnet",), epochs=1)[1] == []


# ---- processes that train together ----------------------------------------------------------------------


def run_together(rank, out, data, changes):
    return run_listening(rank, out, data, **changes)[0]


@pytest.mark.parametrize("augment", [(), ("flips", "affine", "intensity")])
def test_two_processes_that_train_together_equal_one(tmp_path, augment):
    expected = finished_run()
    changes = {"models": ("a_segnet",), "augment": augment}
    if augment:
        expected = tmp_path / "one"
        run(expected, **changes)
    found = together(run_together, tmp_path / "run", data_of(expected), changes)
    assert found[0] == found[1]
    for path in (tmp_path / "run").rglob("checkpoint_last.pt"):
        ours, theirs = (
            read_checkpoint(run / path.relative_to(tmp_path / "run")) for run in (tmp_path / "run", expected)
        )
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        # Rounding grows from step to step, and where a ReLU's input is near 0 it can tip over.
        for key, value in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][key], value, rtol=1e-2, atol=1e-3)
