"""`torchrun -m asegnet_fast crossval`, as a user types it: its results, Ctrl-C, a process that dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from asegnet_fast.checkpoint import read_checkpoint
from tests.program_runs import SMALL, data_folder, run

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.extended


def start(out, *more):
    options = SMALL | {"models": ("a_segnet",), "data": data_folder(), "out": out}
    words = [
        f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in options.items()
    ]
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "asegnet_fast"]
    return subprocess.Popen(
        [*program, "crossval", *words, *more],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until_it_trains(out):
    deadline = time.monotonic() + 120
    while not list(out.glob("*/fold0/checkpoint_last.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_processes_train_a_run(tmp_path):
    process = start(tmp_path / "two")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert printed.count("A-SegNet") == 1 and "Warning" not in printed
    assert (tmp_path / "two" / "table1.md").exists()
    run(tmp_path / "one", models=("a_segnet",))
    for path in (tmp_path / "one").rglob("checkpoint_last.pt"):
        ours, theirs = (
            read_checkpoint(tmp_path / name / path.relative_to(tmp_path / "one"))["state_dict"]
            for name in ("two", "one")
        )
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-2, atol=1e-3)
    process = start(tmp_path / "two")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and printed.count("continue it with --resume") == 1


def test_ctrl_c_stops_all_and_the_run_goes_on(tmp_path):
    process = start(tmp_path / "run", "--epochs", "2000")
    until_it_trains(tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=25)[0]  # torchrun kills after 30 seconds
    assert printed.count("interrupted; the same command with --resume continues") == 1
    assert not list(tmp_path.rglob("claim-*"))
    process = start(tmp_path / "run", "--epochs", "2000", "--resume")
    deadline = time.monotonic() + 120
    while "goes on after epoch" not in process.stdout.readline():
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=25)


def test_a_process_that_dies_stops_all(tmp_path):
    process = start(tmp_path / "run", "--epochs", "2000")
    until_it_trains(tmp_path / "run")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    printed = process.communicate(timeout=25)[0]
    assert process.returncode == 1
    assert "another process has stopped, so this one does" in printed
    assert not list(tmp_path.rglob("claim-*"))
