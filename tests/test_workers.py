"""Worker processes: errors, deaths, Ctrl-C, a parent that dies. (That they train is tested with the jobs.)"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asegnet_fast.errors import InputError
from asegnet_fast.training.loop import TrainingError
from asegnet_fast.training.workers import gpu_for, run_workers
from tests.program_runs import SMALL, TINY, data_folder, quiet, run

ROOT = Path(__file__).parent.parent


def listening():
    reporter, said = quiet(), []
    reporter.say = said.append
    return reporter, said


def test_gpus_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [gpu_for("cuda", number) for number in (1, 2, 3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert gpu_for("cpu", 2) == "cpu" and gpu_for("cuda:1", 1) == "cuda:1"


def work(number, reporter, folder, error):
    """The first one fails in some way, the second waits, or goes on."""
    reporter.say("at work")
    if number == 1:
        while not (folder / "2").exists():
            time.sleep(0.05)
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise error
    (folder / "2").touch()
    try:
        time.sleep(60 if error else 1)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        raise


@pytest.mark.extended
def test_an_error_of_one_ends_all(tmp_path):
    reporter, said = listening()
    with pytest.raises(InputError, match="a file: expected"):
        run_workers(2, reporter, work, tmp_path, InputError("a file: expected this, got that"))
    assert (tmp_path / "interrupted").exists()
    assert sorted(said) == ["[1] at work", "[2] at work"]


@pytest.mark.extended
def test_a_death_is_told_and_the_others_go_on(tmp_path):
    reporter, said = listening()
    run_workers(2, reporter, work, tmp_path, None)
    assert "process 1 of 2 has died (signal 9)" in said and not (tmp_path / "interrupted").exists()


def die(number, reporter):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.extended
def test_where_all_die_the_run_has_failed():
    with pytest.raises(TrainingError, match="all processes have died"):
        run_workers(2, listening()[0], die)


def start(out):
    command = [sys.executable, "-m", "asegnet_fast", "crossval", "--data", data_folder(), "--out", str(out)]
    return subprocess.Popen(
        [*command, *TINY, "--epochs", "100000", "--checkpoint-seconds", "0", "--workers", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.extended
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_signal_leaves_a_run_to_resume(tmp_path, number, whole_group):
    """Ctrl-C reaches every process; a batch system's signal perhaps only the first."""
    out = tmp_path / "run"
    process = start(out)
    until(lambda: len(list(out.glob("*/*/checkpoint_last.pt"))) == 2)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), errors
    assert printed.count("the same command with --resume continues") == 1
    assert "Traceback" not in errors
    assert not list(out.rglob("claim-*"))


@pytest.mark.extended
def test_workers_end_with_their_parent_and_others_take_over(tmp_path):
    out = tmp_path / "run"
    process = start(out)
    until(lambda: len(list(out.glob("*/*/checkpoint_last.pt"))) == 2)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not list(out.rglob("claim-*")))
    assert SMALL["epochs"] == 3
    with pytest.raises(InputError, match="epochs: 100000 there, 3 asked"):
        run(out, resume=True)
