"""The search for loss parameters and a learning rate: Optuna's trials, each a training inside one fold's training part.

The test slices of that fold are no part of anything here: every trial gets the training part alone, trains on some of
it and is measured on the rest, the inner validation. A trial is a job like a fold of a cross-validation: claimed,
resumed from its checkpoint, taken over when its process dies. Optuna's journal in the run's folder holds what the
trials have found, so that the search goes on where it stopped, in one process or in many.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.environment import choose_device
from asegnet_fast.files import write_csv, write_json
from asegnet_fast.training import distributed
from asegnet_fast.training.claims import Claim, Watch
from asegnet_fast.training.config import Row, Settings, option
from asegnet_fast.training.jobs import POLL_SECONDS, Sharing
from asegnet_fast.training.loop import TrainingError, run_fold
from asegnet_fast.training.losses import Loss
from asegnet_fast.training.progress import Reporter
from asegnet_fast.training.search import Search, TrainingPart, import_optuna, open_study
from asegnet_fast.training.space import Point
from asegnet_fast.training.split import derived_seed
from asegnet_fast.training.steps import Slices
from asegnet_fast.training.workers import gpu_for

if TYPE_CHECKING:
    import optuna


def work_on_search(
    number: int,
    reporter: Reporter,
    settings: Settings,
    search: Search,
    part: TrainingPart,
    sharing: Sharing,
) -> None:
    """Do trials until there are enough.

    Args:
        number: of this worker of the machine, from 1; 0 where there are no workers.
        reporter: shows progress.
        settings: of the training; one model, `inner_validation` > 0.
        search: what is searched.
        part: what is trained and measured on.
        sharing: how the trials are shared with other processes.
    """
    import asegnet_fast as af

    device = choose_device(settings.device)
    settings = dataclasses.replace(settings, device=gpu_for(device, number) if number else device)
    slices = part.on(settings.device)
    study = open_study(settings, search)
    watch = Watch(sharing.stale_seconds)
    with af.use_backend(settings.backend):
        while True:
            found = _take_trial(study, settings, search, watch)
            if found is None:
                if has_enough(study, search) or not sharing.wait:
                    return
                time.sleep(min(POLL_SECONDS, sharing.stale_seconds / 4))
                continue
            trial, claim = found
            done = sum(other.state.is_finished() for other in _counting(study))
            reporter.folds(done, search.trials, f"trial {trial.number}", search.fold)
            try:
                _do_trial(study, trial, claim, settings, search, slices, part.fingerprint, reporter)
            except distributed.TakenOver:
                reporter.say(f"trial {trial.number}: another process took it over")
            finally:
                claim.release()


def trial_folder(settings: Settings, number: int) -> Path:
    return Path(settings.out) / "trials" / str(number)


def _counting(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that are done or under way, without those that were dropped."""
    state = import_optuna().trial.TrialState
    return study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED, state.RUNNING))


def has_enough(study: optuna.Study, search: Search) -> bool:
    """Whether as many trials are done as the search asks for."""
    return sum(trial.state.is_finished() for trial in _counting(study)) >= search.trials


def _take_trial(
    study: optuna.Study, settings: Settings, search: Search, watch: Watch
) -> tuple[optuna.Trial, Claim] | None:
    """A trial that a dead process left, or a new one, and this process's claim on it; None where none is free."""
    optuna = import_optuna()
    counting = _counting(study)
    for left in counting:
        if not left.state.is_finished() and (claim := watch.take(trial_folder(settings, left.number))):
            if study.get_trials(deepcopy=False)[left.number].state.is_finished():
                claim.release()
                continue
            return optuna.trial.Trial(study, left._trial_id), claim
    if len(counting) >= search.trials:
        return None
    trial = study.ask()
    claim = watch.take(trial_folder(settings, trial.number))
    earlier = [other for other in _counting(study) if other.number < trial.number]
    if claim is not None and len(earlier) >= search.trials:  # others asked at the same moment
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        claim.release()
        return None
    return None if claim is None else (trial, claim)


class _Progress:
    """A fold's reporter for a trial: tells Optuna its inner Dice after each epoch, and ends it on advice."""

    def __init__(self, reporter: Reporter, trial: optuna.Trial) -> None:
        self._reporter, self._trial = reporter, trial
        self.inner_dice = 0.0  # after the last epoch

    def say(self, text: str) -> None:
        self._reporter.say(text)

    def step(self, done: int, total: int, loss: Any, lr: float) -> None:
        self._reporter.step(done, total, loss, lr)

    def epochs(self, done: int, total: int, record: dict[str, Any] | None, name: str) -> None:
        self._reporter.epochs(done, total, record, name)
        if record is None:
            return
        self.inner_dice = record["inner_dice"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an epoch that was reported before the trial was resumed
            self._trial.report(self.inner_dice, done)
        if done < total and self._trial.should_prune():
            raise import_optuna().TrialPruned


def _do_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    claim: Claim,
    settings: Settings,
    search: Search,
    slices: Slices,
    fingerprint: str,
    reporter: Reporter,
) -> None:
    """Train at a point of the space, and tell Optuna what the inner validation says."""
    optuna = import_optuna()
    # A sampler of its own for each trial: the same seed finds the same again, resumed or not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = optuna.samplers.TPESampler(
            seed=derived_seed(settings.seed, trial.number, 4), multivariate=True, constant_liar=True
        )
        point = search.space.suggest(trial)
    chosen = dataclasses.replace(settings, losses=(point.loss,), lr=point.lr)
    row = Row(settings.models[0], Loss.parse(point.loss))
    for key, value in (dataclasses.asdict(point) | {"loss": point.loss}).items():
        trial.set_user_attr(key, value)
    folder = trial_folder(settings, trial.number)
    name = f"trial {trial.number} ({point.loss}, lr {point.lr:g})"

    def go_on() -> None:
        distributed.stop_together(claim.lost)

    identity = {"run": chosen.run_key(), "data": fingerprint, "row": row.folder, "fold": search.fold}
    everything = np.arange(len(slices.images))
    split = everything, everything[:0]
    progress = _Progress(reporter, trial)
    try:
        metrics = run_fold(chosen, row, search.fold, split, slices, folder, identity, progress, go_on)
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        reporter.say(f"{name}: ended early, below the median")
    except TrainingError as error:
        study.tell(trial, 0.0)  # the worst there is, so that the search turns away from there
        reporter.say(f"{name}: counts as Dice 0; {error}")
    else:
        best = settings.tested_epoch == "best"
        dice = metrics["inner_validation"]["dice"] if best else progress.inner_dice
        study.tell(trial, dice)
        reporter.say(f"{name}: inner Dice {dice:.4f}, best {study.best_value:.4f}")
    for checkpoint in folder.glob("checkpoint_*.pt"):  # hundreds of megabytes each
        checkpoint.unlink(missing_ok=True)


def conclude(settings: Settings, search: Search, study: optuna.Study) -> dict[str, Any]:
    """Write best.json and trials.csv of a search that has a finished trial.

    Returns:
        The content of best.json.

    Raises:
        TrainingError: no trial went through all its epochs.
    """
    optuna = import_optuna()
    trials = study.get_trials(deepcopy=False)
    counts = {
        state.name.lower(): sum(trial.state == state for trial in trials)
        for state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    }
    if not counts["complete"]:
        raise TrainingError("no trial went through all its epochs")
    best = study.best_trial
    point = Point(*(best.user_attrs[field.name] for field in dataclasses.fields(Point)))
    content = {
        "trial": best.number,
        "inner_dice": best.value,
        "model": settings.models[0],
        "loss": point.loss,
        **dataclasses.asdict(point),
        "fold": search.fold,
        "trials": counts,
        "command": crossval_command(settings, point),
        "note": f"Chosen inside the training part of fold {search.fold}: its test slices took no part, those of the "
        "other folds did; an estimate that knows nothing of the choice is that fold's.",
    }
    out = Path(settings.out)
    write_json(out / "best.json", content)
    names = [*(field.name for field in dataclasses.fields(Point)), "loss"]
    write_csv(
        out / "trials.csv",
        [
            {"trial": trial.number, "state": trial.state.name.lower(), "inner_dice": trial.value}
            | {name: trial.user_attrs.get(name) for name in names}
            | {"epochs": max(trial.intermediate_values, default=0)}
            for trial in trials
        ],
    )
    return content


def crossval_command(settings: Settings, point: Point) -> str:
    """The command line that cross-validates with what was found, in the words of a shell."""
    chosen = dataclasses.replace(
        settings,
        losses=(point.loss,),
        lr=point.lr,
        out=f"{settings.out.rstrip('/')}-crossval",
        inner_validation=settings.inner_validation if settings.tested_epoch == "best" else 0.0,
        early_stopping=settings.early_stopping if settings.tested_epoch == "best" else 0,
    )
    words = ["asegnet-fast", "crossval"]
    for field in dataclasses.fields(Settings):
        value = getattr(chosen, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(option(field.name) if value else "--no-" + option(field.name).removeprefix("--"))
        else:
            words += [
                option(field.name),
                ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
            ]
    return shlex.join(words)
