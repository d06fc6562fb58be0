"""Kill runs with SIGKILL at random moments, resume them, and compare bit for bit with one that was never killed.

    python -m tests.kill_runs --kills 50

Each run is killed until it has come to its end, at moments drawn over the whole life of a process: while it reads, in
the middle of a step, of a checkpoint, of the table. What must be the same: every weight, momentum and random state in
every checkpoint, metrics.json, summary.json, the tables, folds.json, and history.csv but for its clock.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asegnet_fast import files
from asegnet_fast.checkpoint import read_checkpoint
from tests.program_runs import settings

#: Both networks, everything that draws random numbers, and checkpoints of the best epoch.
CHANGES: dict[str, Any] = {
    "losses": ("dl",),
    "epochs": 4,
    "augment": ("flips", "affine", "intensity"),
    "inner_validation": 0.3,
    "early_stopping": 3,
    "tested_epoch": "best",
}


def results(out: Path) -> dict[str, object]:
    """Everything in a run's folder that must be the same at every repetition, by name."""
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if path.suffix == ".pt":
            content = read_checkpoint(path)
            for record in content.get("history", ()):
                del record["seconds"]
            content.pop("settings")  # has the name of the folder
            found[name] = repr(plain(content))
        elif path.name == "history.csv":
            found[name] = [{k: v for k, v in line.items() if k != "seconds"} for line in files.read_csv(path)]
        elif path.name != "config.json":
            found[name] = path.read_bytes()
    return found


def plain(value: Any) -> Any:
    """A value whose text tells every bit of it: tensors become bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def work(out: str, data: str, changes: dict[str, Any]) -> None:
    """What a process does: the run from wherever its files stand."""
    from asegnet_fast.training.crossval import cross_validate, load_data
    from tests.program_runs import quiet

    torch.set_num_threads(1)
    wanted = settings(Path(out), **CHANGES | changes, data=data)
    cross_validate(wanted, load_data(wanted), quiet(), resume=True)


def start(context: Any, out: Path, data: str, changes: dict[str, Any]) -> Any:
    process = context.Process(target=work, args=(str(out), data, changes))
    process.start()
    return process


def kill_runs(
    kills: int, seed: int, folder: Path, data: str, say: Any = lambda text: None, **changes: Any
) -> int:
    """Kill runs at `kills` random moments, resume each to its end, and compare it with a whole one.

    Args:
        kills: how many at least; a run that has been begun is brought to its end.
        seed: decides the moments, as far as the clock allows.
        folder: for the runs.
        data: the data set.
        say: called with a line for each run.
        changes: fields of the settings that are others than in `CHANGES`.

    Returns:
        How many kills there were.

    Raises:
        AssertionError: a run ended with other bits, left a temporary file behind, or failed.
    """
    # One process imports torch and forks the others, which then begin at once; deterministic mode wants the inductor.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.program_runs", "asegnet_fast.data", "torch._inductor"])
    warm = context.Process(target=plain, args=(None,))
    warm.start()
    warm.join()
    began = time.monotonic()
    whole = start(context, folder / "whole", data, changes)
    whole.join()
    assert whole.exitcode == 0
    life = time.monotonic() - began
    expected = results(folder / "whole")
    moments = random.Random(seed)
    done = number = 0
    while done < kills:
        number += 1
        out = folder / f"killed{number}"
        times = 0
        while True:
            process = start(context, out, data, changes)
            process.join(moments.uniform(0, life))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, f"{out}: ended with {process.exitcode}"
            times += 1
            if times >= 12:  # the moments may all fall short of the last step
                last = start(context, out, data, changes)
                last.join()
                assert last.exitcode == 0, f"{out}: ended with {last.exitcode}"
                break
        done += times
        found = results(out)
        different = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        assert not different, f"{out}: other bits after {times} kills in {', '.join(different)}"
        say(f"run {number}: {times} kills, the same bits ({done} of {kills})")
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from asegnet_fast.data import write_phantom

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="asegnet-fast-kills-") as name:
        data = write_phantom(Path(name) / "data", patients=4, slices_per_patient=8, size=48, seed=3)
        try:
            done = kill_runs(given.kills, given.seed, Path(name), str(data), print)
        except AssertionError as error:
            print(f"kill_runs: {error}", file=sys.stderr)
            return 1
    print(f"{done} kills, every run ended with the same bits")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
