"""The search: what it may see, what it leaves, how it is resumed and shared."""

import dataclasses
import json
import shlex
import shutil
import sys

import numpy as np
import pytest

import asegnet_fast.cli as cli
from asegnet_fast.data import make_folds
from asegnet_fast.errors import InputError
from asegnet_fast.training import loop, steps
from asegnet_fast.training.config import Settings
from asegnet_fast.training.crossval import load_data
from asegnet_fast.training.jobs import Sharing
from asegnet_fast.training.loop import TrainingError
from asegnet_fast.training.search import Search, TrainingPart, open_study, prepare_search
from asegnet_fast.training.space import PAPER, Range, Space
from asegnet_fast.training.tune import conclude, crossval_command, work_on_search
from tests.processes import apart
from tests.program_runs import TINY, data_folder, quiet, settings

pytest.importorskip("optuna")
SPACE = Space.parse("0.1:0.9", "1-alpha", "1:3", "0.01:0.3")
COMMAND = ["tune", *TINY, "--epochs", "2", "--inner-validation", "0.3"]


def wanted(out, **changes):
    return settings(out, models=("segnet",), inner_validation=0.3, **({"epochs": 2} | changes))


def search(out, trials, space=SPACE, prune_after=1, reporter=None, **changes):
    """A search in this process; returns its study."""
    chosen, plan = wanted(out, **changes), Search(space, trials, 0, prune_after)
    part = TrainingPart.of(load_data(chosen), chosen, 0)
    prepare_search(chosen, plan, part.fingerprint, resume=True)
    work_on_search(0, reporter or quiet(), chosen, plan, part, Sharing())
    return open_study(chosen, plan)


def found(study):
    """Each trial's point and value."""
    return [(trial.user_attrs, trial.value, trial.state.name) for trial in study.trials]


# ---- what it may see ------------------------------------------------------------------------------------


def test_the_test_slices_never_enter(tmp_path, monkeypatch):
    chosen = wanted(tmp_path)
    data = load_data(chosen)
    test = make_folds(data, k=chosen.folds, split=chosen.split, seed=chosen.seed).test_indices(0)
    # Mark the test slices by what no other slice has: every pixel 255, in images and masks.
    images, masks = data.images.copy(), data.masks.copy()
    others = np.setdiff1d(np.arange(len(images)), test)
    images[others] = np.minimum(images[others], 254)
    images[test], masks[test] = 255, 1
    seen = {"batches": 0, "largest": 0, "masks": 0.0, "means": []}
    real, statistics, counts = steps.normalised, loop.normalisation_of, steps.pixel_counts

    def normalised(batch, normalisation):  # on the way to the network, in training and evaluation
        seen["batches"] += 1
        seen["largest"] = max(seen["largest"], int(batch.max()))
        return real(batch, normalisation)

    def normalisation_of(pixels):
        seen["largest"] = max(seen["largest"], int(pixels.max()))
        return statistics(pixels)

    def pixel_counts(prediction, target, classes):
        seen["masks"] = max(seen["masks"], float(target.float().mean((1, 2)).max()))
        return counts(prediction, target, classes)

    monkeypatch.setattr(steps, "normalised", normalised)
    monkeypatch.setattr(loop, "normalisation_of", normalisation_of)
    monkeypatch.setattr(steps, "pixel_counts", pixel_counts)
    marked = dataclasses.replace(data, images=images, masks=masks)
    plan = Search(SPACE, 2, 0, 1)
    part = TrainingPart.of(marked, chosen, 0)
    assert len(part.images) == len(others)
    prepare_search(chosen, plan, part.fingerprint, resume=False)
    work_on_search(0, quiet(), chosen, plan, part, Sharing())
    assert seen["batches"] > 10 and seen["largest"] < 255 and seen["masks"] < 1
    for trial in (tmp_path / "trials").iterdir():
        assert json.loads((trial / "metrics.json").read_text())["test_indices"] == []


# ---- the search -----------------------------------------------------------------------------------------


def test_one_seed_one_search_also_after_an_interruption(tmp_path):
    whole = search(tmp_path / "whole", 4)
    assert (
        whole.trials[0].user_attrs["loss"] == "ftl:0.3:0.7:1.3333" and whole.trials[0].user_attrs["lr"] == 0.1
    )
    assert len({trial.user_attrs["loss"] for trial in whole.trials}) == 4

    class Stops:
        """Presses Ctrl-C in the second trial, after its first epoch."""

        trials = 0

        def say(self, text): ...

        def folds(self, *position):
            self.trials += 1

        def step(self, done, *position):
            if self.trials == 2 and self.epoch == 1:
                raise KeyboardInterrupt

        def epochs(self, done, *position):
            self.epoch = done

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "stopped", 4, reporter=Stops())
    assert not list(tmp_path.rglob("claim-*"))
    said = []
    listener = type("Listener", (Stops,), {"say": lambda self, text: said.append(text), "trials": 2})()
    resumed = search(tmp_path / "stopped", 4, reporter=listener)
    assert any("goes on after epoch 1" in text for text in said)
    assert found(resumed) == found(whole)
    assert found(search(tmp_path / "other", 2, seed=1))[1] != found(whole)[1]


def test_a_bad_trial_is_ended_early_and_a_wild_one_counts_as_zero(tmp_path, monkeypatch):
    from asegnet_fast.training import tune

    inner = iter([0.5, 0.6] * 5 + [0.1])

    def run_fold(settings, row, fold, split, slices, folder, identity, progress, go_on):
        for epoch in (1, 2):
            value = next(inner, None)
            if value is None:
                raise TrainingError("segnet/fold0: expected a finite loss, got nan")
            progress.epochs(epoch, 2, {"inner_dice": value}, "")
        return {}

    monkeypatch.setattr(tune, "run_fold", run_fold)
    said = []
    reporter = type("R", (), {"say": lambda _, text: said.append(text), "folds": print, "epochs": print})()
    study = search(tmp_path, 7, reporter=reporter)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5 + ["PRUNED", "COMPLETE"]
    assert study.trials[6].value == 0 and "counts as Dice 0" in said[-1]
    best = conclude(wanted(tmp_path), Search(SPACE, 7, 0, 1), study)
    assert best["inner_dice"] == 0.6 and best["trials"] == {"complete": 6, "pruned": 1}


def help_search(number, out, data):
    chosen = dataclasses.replace(wanted(out), data=data)
    plan = Search(SPACE, 5, 0, 2)
    part = TrainingPart.of(load_data(chosen), chosen, 0)
    prepare_search(chosen, plan, part.fingerprint, resume=True)
    said = []
    reporter = quiet()
    reporter.say = said.append
    work_on_search(0, reporter, chosen, plan, part, Sharing())
    return [int(text.split()[1]) for text in said if "inner Dice" in text]


def test_two_processes_share_a_search(tmp_path):
    trials = apart(2, help_search, tmp_path, data_folder())
    study = open_study(wanted(tmp_path), Search(SPACE, 5, 0, 2))
    done = [trial.number for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(done) == 5 and sorted(trials[0] + trials[1]) == done
    assert not list(tmp_path.rglob("claim-*"))


# ---- the command ----------------------------------------------------------------------------------------


def test_the_command_and_what_it_leaves(tmp_path, capsys, monkeypatch):
    out = tmp_path / "search"
    command = [*COMMAND, "--data", data_folder(), "--out", str(out), "--gamma", "4/3", "--alpha", "0.2:0.4"]
    assert cli.main([*command, "--trials", "2"]) == 0
    best = json.loads((out / "best.json").read_text())
    names = {"best.json", "trials.csv", "tune.json", "journal.log", "trials", "history.png", "slice.png"}
    assert {path.name for path in out.iterdir()} == names
    assert not list(out.rglob("checkpoint*"))
    assert best["gamma"] == 1.3333 and 0.2 <= best["alpha"] <= 0.4
    assert best["beta"] == pytest.approx(1 - best["alpha"])
    assert best["command"] in capsys.readouterr().out
    # The command that was found is a command.
    called = []
    monkeypatch.setattr(
        "asegnet_fast.cli.crossval.run_crossval", lambda settings, *_: called.append(settings)
    )
    words = shlex.split(best["command"])
    assert words[0] == "asegnet-fast" and cli.main(words[1:]) == 0
    assert called[0].losses == (best["loss"],) and called[0].lr == best["lr"]
    assert called[0].models == ("a_segnet",) and called[0].size == 32

    assert cli.main([*command, "--trials", "3"]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "--lr", "0.1"]) == 2
    assert "got another (space" in capsys.readouterr().err
    monkeypatch.setattr("asegnet_fast.report.tuning.write_tuning_figures", lambda *_: [])
    assert cli.main([*command, "--trials", "3", "--resume"]) == 0
    assert "best of 3 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--alpha", "x"], "--alpha: expected LOW:HIGH or a number, from 0 to 1000, got 'x'"),
        (["--alpha", "0.9:0.1"], "--alpha: expected LOW:HIGH"),
        (["--alpha", "0.5:2"], "--alpha: expected at most 1, because beta is 1 - alpha"),
        (["--alpha", "0:1", "--beta", "0:1"], "--alpha, --beta: expected one of them above 0"),
        (["--gamma", "1:4"], "--gamma: expected LOW:HIGH or a number, from 1 to 3"),
        (["--lr", "0:1"], "--lr: expected LOW:HIGH"),
        (["--lr", "nan"], "--lr: expected LOW:HIGH"),
        (["--trials", "0"], "--trials: expected a whole number from 1"),
        (["--trials", "²"], "--trials: expected a whole number from 1"),
        (["--fold", "2"], "--fold: expected a whole number from 0 to 1, got '2'"),
        (["--prune-after", "-1"], "--prune-after: expected a whole number"),
        (["--models", "segnet,a_segnet"], "--models: expected one model to tune"),
        (["--workers", "0"], "--workers: expected a whole number from 1 to 256"),
        (["--stale-seconds", "0"], "--stale-seconds: expected a number of seconds >= 1"),
        (["--batch-size", "1000"], "--batch-size: expected at most"),
        (["--inner-validation", "0.9"], "--inner-validation: expected a share from 0 to 0.5"),
    ],
)
def test_wrong_options_are_one_line(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*COMMAND, "--data", data_folder(), "--out", "run", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not list(tmp_path.iterdir())


def test_without_optuna_the_way_to_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main([*COMMAND, "--data", data_folder(), "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'asegnet-fast[tune]'" in capsys.readouterr().err


def test_other_files_and_a_damaged_plan_are_refused(tmp_path):
    out = tmp_path / "run"
    search(out, 1)
    (out / "tune.json").write_text("{}")
    with pytest.raises(InputError, match=r"tune\.json: expected the plan of a search"):
        search(out, 1)
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="with other files in it"):
        search(out, 1)


# ---- ranges and commands --------------------------------------------------------------------------------


def test_ranges():
    assert Range.parse("gamma", "4/3:2") == Range(4 / 3, 2.0)
    assert str(Range.parse("lr", "0.1")) == "0.1"
    assert SPACE.paper_point() == {name: PAPER[name] for name in ("alpha", "gamma", "lr")}
    assert Space.parse("0.5:0.9", "1-alpha", "1:3", "0.1").paper_point() is None
    assert Space.parse("0.3", "0.7", "1", "0.1").paper_point() is None
    again = Space.parse(*SPACE.to_json().values())
    assert again == SPACE


def test_the_crossval_command_says_what_differs(tmp_path):
    from asegnet_fast.training.space import Point

    chosen = Settings(
        "my data", "out", models=("segnet",), deterministic=False, widths=(4, 8), inner_validation=0.2
    )
    command = crossval_command(chosen, Point(0.25, 0.75, 2.0, 0.05))
    assert command == (
        "asegnet-fast crossval --data 'my data' --out out-crossval --models segnet --losses ftl:0.25:0.75:2 "
        "--widths 4,8 --lr 0.05 --no-deterministic"
    )
