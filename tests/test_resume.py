"""A run that was stopped ends as one that never was: damaged files, leftovers, a full disk, signals."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import asegnet_fast.cli as cli
from asegnet_fast import files
from asegnet_fast.checkpoint import read_checkpoint
from asegnet_fast.errors import InputError
from asegnet_fast.report.charts import training_curves
from asegnet_fast.training.progress import Reporter
from asegnet_fast.training.state import BEST, LAST, PREVIOUS
from tests.kill_runs import kill_runs
from tests.program_runs import TINY, data_folder, run, settings, snapshot

ROW = "segnet--dl"
ONE = {"models": ("segnet",), "losses": ("dl",)}
RESULTS = ("metrics.json", "summary.json")


def results(out: Path, row: str = ROW) -> dict[str, object]:
    """What must be the same at every repetition: measures as they are written, weights, curves without the clock."""
    found: dict[str, object] = {"summary.json": (out / "summary.json").read_bytes()}
    for fold in sorted((out / row).glob("fold*")):
        found[f"{fold.name} metrics"] = (fold / "metrics.json").read_bytes()
        for path in sorted(fold.glob("*.pt")):
            content = read_checkpoint(path)
            for key, value in content["state_dict"].items():
                found[f"{fold.name} {path.name} {key}"] = value.numpy().tobytes()
        for line in files.read_csv(fold / "history.csv"):
            found[f"{fold.name} epoch {line['epoch']}"] = {k: v for k, v in line.items() if k != "seconds"}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, **ONE)
    return out


@pytest.fixture
def stopped(tmp_path) -> Path:
    """A run that was stopped in the first fold after two of three epochs, with both its checkpoints."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", reporter=StopAt(2), **ONE)
    return tmp_path / "run"


class StopAt(Reporter):
    """Presses Ctrl-C in the epoch after `epoch`."""

    def __init__(self, epoch):
        super().__init__()
        self.console.quiet = True
        self.epoch = epoch

    def epochs(self, done, total, record, name):
        if done == self.epoch + 1:
            raise KeyboardInterrupt


# ---- checkpoints -----------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """Alter one byte of a tensor in the middle of the file, which torch.load would not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(stopped, whole, capsys):
    fold = stopped / ROW / "fold0"
    assert [read_checkpoint(fold / name)["epoch"] for name in (LAST, PREVIOUS)] == [2, 1]
    damage(fold / LAST)
    run(stopped, resume=True, reporter=Reporter(), **ONE)
    told = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert len(told) == 1 and LAST in told[0] and f"{PREVIOUS} is used" in told[0]
    assert results(stopped) == results(whole)
    assert not (fold / PREVIOUS).exists()


def test_a_kill_between_two_renames_loses_one_epoch_at_most(stopped, whole):
    (stopped / ROW / "fold0" / LAST).unlink()
    run(stopped, resume=True, **ONE)
    assert results(stopped) == results(whole)


def test_two_damaged_checkpoints_are_left_to_the_user(stopped, whole):
    fold = stopped / ROW / "fold0"
    damage(fold / LAST)
    (fold / PREVIOUS).write_text("")
    before = snapshot(stopped)
    with pytest.raises(
        InputError, match=rf"{LAST}: expected a whole checkpoint.*remove it to begin this fold"
    ):
        run(stopped, resume=True, **ONE)
    assert snapshot(stopped) == before
    for name in (LAST, PREVIOUS):
        (fold / name).unlink()
    run(stopped, resume=True, **ONE)
    assert results(stopped) == results(whole)


def test_another_runs_checkpoint_is_refused_with_the_difference(stopped, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", reporter=StopAt(1), **ONE, lr=0.01)
    shutil.copy(tmp_path / "other" / ROW / "fold0" / LAST, stopped / ROW / "fold0" / LAST)
    before = snapshot(stopped)
    with pytest.raises(InputError, match=rf"{LAST}: .*lr: 0.01 there, 0.1 asked"):
        run(stopped, resume=True, **ONE)
    assert snapshot(stopped) == before


# ---- files -----------------------------------------------------------------------------------------------------


def ended_process() -> int:
    """The number of a process that runs no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(stopped, monkeypatch):
    fold = stopped / ROW / "fold0"
    living = files.temporary_name(stopped / "summary.json")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "getpid", ended_process)
        dead = [files.temporary_name(p) for p in (stopped / "summary.json", fold / LAST)]
    folder = dead[0].with_name(dead[0].name + "-folder")
    folder.mkdir()
    for path in (living, *dead, folder / "file"):
        path.write_text("half")
    run(stopped, resume=True, **ONE)
    assert living.exists() and not any(path.exists() for path in (*dead, folder))


def test_a_run_killed_before_its_first_file_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "getpid", ended_process)
    files.temporary_name(tmp_path / "config.json").write_text("half")
    monkeypatch.undo()
    run(tmp_path, **ONE, epochs=1)
    assert not [path for path in tmp_path.iterdir() if files.is_temporary(path)]


def full_disk(monkeypatch, name: str, number: int) -> None:
    """The disk is full when a file of this name is written for the `number`-th time."""
    real, seen = files.os.fsync, []

    def fsync(descriptor):
        if files.os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            seen.append(0)
            if len(seen) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", [LAST, "metrics.json"])
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, whole, name, monkeypatch, capsys):
    out = tmp_path / "run"
    command = ["crossval", "--data", data_folder(), "--out", str(out), *TINY, "--models", "segnet"]
    command += ["--losses", "dl", "--epochs", "3", "--checkpoint-seconds", "0"]
    with monkeypatch.context() as patch:
        full_disk(patch, name, 2)
        assert cli.main(command) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{name}: No space left on device" in lines[0] and "--resume" in lines[0]
    assert not [path for path in out.rglob("*") if files.is_temporary(path)]
    run(out, resume=True, **ONE)
    assert results(out) == results(whole)


# ---- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_runs_end_with_the_same_bits(tmp_path):
    assert kill_runs(3, 1, tmp_path, data_folder(), models=("a_segnet",), epochs=2) >= 3


# ---- signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_leaves_a_run_to_resume(tmp_path, number, status, word, monkeypatch, capsys):
    command = ["crossval", "--data", data_folder(), "--out", str(tmp_path / "run"), *TINY, "--epochs", "1"]
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    real, second = Reporter.say, []

    def say(self, text):
        if text.startswith(word):  # a second Ctrl-C now would end the process at once
            second.extend(signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM))
        real(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", lambda *_: signal.raise_signal(number))
        patch.setattr(Reporter, "say", say)
        assert cli.main(command) == status
    assert second == [signal.SIG_DFL] * 2
    printed = capsys.readouterr()
    assert f"{word}; the same command with --resume continues" in printed.out and printed.err == ""
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


# ---- early stopping --------------------------------------------------------------------------------------------

EARLY = ONE | {"inner_validation": 0.3, "early_stopping": 2, "tested_epoch": "best", "lr": 1e-6, "epochs": 30}


def test_early_stopping_and_its_resumption(tmp_path):
    # Steps this small improve nothing for long.
    run(tmp_path / "whole", **EARLY)
    metrics = json.loads((tmp_path / "whole" / ROW / "fold0" / "metrics.json").read_text())
    best = metrics["inner_validation"]["epoch"]
    assert metrics["epochs"] == best + 2 < 30
    assert (
        metrics["tested_epoch"] == best == read_checkpoint(tmp_path / "whole" / ROW / "fold0" / BEST)["epoch"]
    )
    line = files.read_csv(tmp_path / "whole" / ROW / "fold0" / "history.csv")[best - 1]
    assert float(line["test_dice"]) == metrics["dice"]["pooled"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", reporter=StopAt(best), **EARLY)
    summary, _ = run(tmp_path / "stopped", resume=True, **EARLY)
    training_curves(tmp_path / "stopped", summary, tmp_path / "curves.png")  # of folds of different lengths
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


@pytest.mark.parametrize(("name", "value"), [("early_stopping", 3), ("tested_epoch", "best")])
def test_what_needs_an_inner_validation_says_so(tmp_path, name, value):
    option = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=rf"{option}: expected --inner-validation above 0 beside it"):
        settings(tmp_path, **{name: value})


# ---- determinism -----------------------------------------------------------------------------------------------


def test_determinism_is_set_for_the_time_of_a_fold(tmp_path, monkeypatch):
    seen = []

    def step(*_):
        seen.append(
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.utils.deterministic.fill_uninitialized_memory,
            )
        )

    monkeypatch.setattr(Reporter, "step", step)
    before = torch.random.get_rng_state()
    run(tmp_path / "on", reporter=quiet_reporter(), **ONE, epochs=1)
    assert set(seen) == {(True, False)} and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before, torch.random.get_rng_state())
    seen.clear()
    run(tmp_path / "off", reporter=quiet_reporter(), **ONE, epochs=1, deterministic=False)
    assert {on for on, _ in seen} == {False}


def quiet_reporter() -> Reporter:
    reporter = Reporter()
    reporter.console.quiet = True
    return reporter


def test_a_second_run_has_the_same_bits(tmp_path, whole):
    run(tmp_path, **ONE)
    assert results(tmp_path) == results(whole)
