"""The folds of a run as jobs, which processes that share the run's folder take one by one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.environment import choose_device
from asegnet_fast.files import read_json, write_json
from asegnet_fast.training import distributed
from asegnet_fast.training.claims import STALE_SECONDS, Claim, Watch, holder_of
from asegnet_fast.training.config import Row, Settings
from asegnet_fast.training.loop import TrainingError, finished_fold, fold_name, fold_seconds, run_fold
from asegnet_fast.training.profile import outside_convolution
from asegnet_fast.training.progress import Reporter
from asegnet_fast.training.steps import Slices
from asegnet_fast.training.workers import gpu_for

if TYPE_CHECKING:
    from asegnet_fast.data import Folds, SliceSet

#: How often a process that has nothing to do looks for work.
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Sharing:
    """How a process shares a run with others.

    wait: whether it stays until the folds that others train are finished, to take over what one of them leaves.
    stale_seconds: a fold whose process gives no sign of life for so long is taken over.
    """

    wait: bool = True
    stale_seconds: float = STALE_SECONDS


@dataclass(frozen=True)
class Job:
    """One row on one fold, or on all slices; `profile` is the file for the row's profile where this job makes it."""

    row: Row
    fold: int | None
    folder: Path
    identity: dict[str, Any]
    profile: Path | None = None

    @property
    def name(self) -> str:
        return fold_name(self.row, self.fold)

    def is_finished(self) -> bool:
        """Whether all its files are there.

        Raises:
            ValueError: metrics.json is damaged or another run's.
        """
        profiled = self.profile is None or self.profile.exists()
        return profiled and finished_fold(self.folder, self.identity) is not None

    def give_up(self, error: str) -> None:
        """Leave a note that the fold cannot be trained, for this process and the others."""
        write_json(_note(self.folder), {"identity": self.identity, "error": error})

    def given_up(self) -> str | None:
        """Why the fold was given up; None where it was not."""
        if not _note(self.folder).exists():
            return None
        note = read_json(_note(self.folder))
        return str(note.get("error")) if note.get("identity") == self.identity else None


def _note(folder: Path) -> Path:
    return folder / "given_up.json"


def forget_given_up(folders: Sequence[Path]) -> None:
    """Let folds that were given up be tried again, unless another process is at work on the run."""
    noted = [folder for folder in folders if _note(folder).exists()]
    if noted and not Watch().anybody_works(folders):
        for folder in noted:
            _note(folder).unlink(missing_ok=True)


def state_of(jobs: Sequence[Job]) -> tuple[int, list[str]]:
    """How many jobs are neither finished nor given up, and why those were given up that were."""
    given_up, remaining = [], 0
    for job in jobs:
        if job.is_finished():
            continue
        if (reason := job.given_up()) is None:
            remaining += 1
        else:
            given_up.append(reason)
    return remaining, given_up


class _Board:
    """The jobs that are not done, of which this process holds one at a time."""

    def __init__(self, jobs: Sequence[Job], stale_seconds: float) -> None:
        self._jobs = jobs
        self._open = list(range(len(jobs)))
        self._watch = Watch(stale_seconds)
        self._claim: Claim | None = None

    def take(self) -> tuple[int | None, int, list[str]]:
        """A job for this process.

        Returns:
            (its number, or None where none is free; how many are done; who holds the others, where none is free).
        """
        for number in list(self._open):
            job = self._jobs[number]
            # A job may be finished between the first look and the claim.
            if self._is_done(number) or not (claim := self._watch.take(job.folder)):
                continue
            if self._is_done(number):
                claim.release()
                continue
            self._claim = claim
            return number, self._done(), []
        holders = [holder_of(self._jobs[number].folder) for number in self._open]
        return None, self._done(), [f"{h.host}, process {h.pid}" if h else "a process" for h in holders]

    def _done(self) -> int:
        return len(self._jobs) - len(self._open)

    def _is_done(self, number: int) -> bool:
        done = self._jobs[number].is_finished() or self._jobs[number].given_up() is not None
        if done:
            self._open.remove(number)
            self._watch.clear(self._jobs[number].folder)
        return done

    def lost(self) -> bool:
        """Whether the job that this process took was given to another."""
        return self._claim is not None and self._claim.lost

    def release(self) -> None:
        """End the work on the job, done or not."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None


def work_through(
    jobs: Sequence[Job],
    train: Callable[[Job, Callable[[], None]], None],
    reporter: Reporter,
    sharing: Sharing,
) -> None:
    """Do every job that is not done and that no other process is at.

    Args:
        jobs: in the order of work.
        train: does a job; calls its second argument after every step, which raises what is to end it there.
        reporter: shows progress.
        sharing: whether to wait for the others.
    """
    board = _Board(jobs, sharing.stale_seconds)
    told: list[str] = []

    def go_on() -> None:
        distributed.stop_together(board.lost())

    while True:
        number, done, holders = distributed.on_first(board.take)
        if number is None:
            if not holders or not sharing.wait:
                return
            if holders != told:
                reporter.say(f"waits for {len(holders)} folds of others: {'; '.join(sorted(set(holders)))}")
                told = holders
            time.sleep(min(POLL_SECONDS, sharing.stale_seconds / 4))
            distributed.stop_together()
            continue
        job = jobs[number]
        reporter.folds(done, len(jobs), job.row.folder, job.fold)
        try:
            train(job, go_on)
        except distributed.TakenOver:
            reporter.say(f"{job.name}: another process took it over")
        except TrainingError as error:
            if distributed.first():
                job.give_up(str(error))
            reporter.say(f"given up: {error}")
        finally:
            board.release()


def work(
    number: int,
    reporter: Reporter,
    settings: Settings,
    slices: SliceSet,
    folds: Folds,
    after_fold: Callable[[Path, Row], None] | None,
    sharing: Sharing,
) -> None:
    """What worker `number` does."""
    device = gpu_for(choose_device(settings.device), number)
    train_folds(dataclasses.replace(settings, device=device), slices, folds, reporter, after_fold, sharing)


def train_folds(
    settings: Settings,
    slices: SliceSet,
    folds: Folds,
    reporter: Reporter,
    after_fold: Callable[[Path, Row], None] | None,
    sharing: Sharing,
) -> None:
    """Train the folds of a prepared run that nobody else trains; arguments as for `cross_validate`."""
    import asegnet_fast as af

    data = on_device(settings, slices)

    def train(job: Job, go_on: Callable[[], None]) -> None:
        split = np.asarray(folds.train(job.fold)), np.asarray(folds.test_indices(job.fold))
        if distributed.on_first(finished_fold, job.folder, job.identity) is None:
            metrics = run_fold(
                settings, job.row, job.fold, split, data, job.folder, job.identity, reporter, go_on
            )
            reporter.say(
                f"{job.name}  Dice {metrics['dice']['pooled']:.4f}  "
                f"{metrics['epochs']} epochs in {distributed.on_first(fold_seconds, job.folder):.1f} s"
            )
        if job.profile is not None and distributed.first():
            write_json(job.profile, outside_convolution(settings, job.row, data, split[0]))
        if after_fold is not None and distributed.first():
            after_fold(job.folder, job.row)

    with af.use_backend(settings.backend):
        work_through(run_jobs(settings, slices.fingerprint), train, reporter, sharing)


def on_device(settings: Settings, slices: SliceSet) -> Slices:
    """The slices where this process trains."""
    import torch

    device = distributed.everywhere(distributed.own_device, choose_device(settings.device))
    return Slices(
        images=torch.from_numpy(np.ascontiguousarray(slices.images)).to(device),
        masks=torch.from_numpy(np.ascontiguousarray(slices.masks)).to(device),
        groups=np.asarray(slices.groups),
        num_classes=slices.num_classes,
        label_values=slices.label_values,
    )


def run_jobs(settings: Settings, fingerprint: str) -> list[Job]:
    """Every row on every fold, in the order of work."""
    jobs = []
    for row in settings.rows():
        for fold in range(settings.folds):
            folder = Path(settings.out) / row.folder
            profile = folder / "profile.json" if settings.profile and fold == 0 else None
            identity = fold_identity(settings, fingerprint, row, fold)
            jobs.append(Job(row, fold, folder / f"fold{fold}", identity, profile))
    return jobs


def fold_identity(settings: Settings, fingerprint: str, row: Row, fold: int | None) -> dict[str, Any]:
    """What a fold's files carry, so that they are never taken for another run's; no fold: trained on all slices."""
    return {"run": settings.run_key(), "data": fingerprint, "row": row.folder, "fold": fold}
