"""The example scripts, with stand-ins for the cluster's commands."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "slurm" / "crossval_array.sh"


def submit(tmp_path, status, **variables):
    """Runs the script as a task of an array; returns (its exit status, its errors, the calls it made)."""
    log = tmp_path / "calls"
    log.write_text("")
    for name, end in (("srun", f"exit {status}"), ("scontrol", "")):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho {name} "$OMP_NUM_THREADS" "$@" >> "{log}"\n{end}\n')
        tool.chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "3", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "4"}
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | slurm | variables
    done = subprocess.run(
        ["bash", str(SCRIPT), "--losses", "dl"], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stderr, log.read_text().splitlines()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (143, True)])
def test_a_task_of_the_array(tmp_path, status, requeued):
    found, _, calls = submit(tmp_path, status, DATA="/d", RUN="/r")
    assert found == status
    assert calls[0] == (
        "srun 3 asegnet-fast crossval --data /d --out /r --cache /r.cache --resume --no-wait --losses dl"
    )
    assert calls[1:] == (["scontrol 3 requeue 17_4"] if requeued else [])


def test_a_task_without_its_folders(tmp_path):
    status, said, calls = submit(tmp_path, 0, DATA="/d")
    assert status != 0 and "RUN: the folder of the run" in said and calls == []
