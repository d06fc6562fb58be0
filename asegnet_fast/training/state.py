"""All that changes while a fold is trained: what a checkpoint holds and what a resumed run starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asegnet_fast.checkpoint import DamagedCheckpoint, read_checkpoint, write_checkpoint
from asegnet_fast.errors import InputError
from asegnet_fast.training.config import differences

LAST, PREVIOUS, BEST = "checkpoint_last.pt", "checkpoint_previous.pt", "checkpoint_best.pt"


@dataclass
class FoldState:
    """A fold between two epochs.

    Attributes:
        network, optimiser, schedule: as they are trained.
        normalisation: {"mean", "sd"} of the training slices.
        generators: the sources of random numbers by name, besides torch's own.
        history: a record for each finished epoch.
        best: {"epoch", "dice"} of the best epoch on the inner validation, epoch 0 while there is none.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    normalisation: dict[str, float]
    generators: Mapping[str, torch.Generator]
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": 0, "dice": -math.inf})

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    def stopped_early(self, patience: int) -> bool:
        """Whether the inner validation has not improved for `patience` epochs; 0: never."""
        return 0 < patience <= self.epoch - self.best["epoch"]

    def weights(self) -> dict[str, Any]:
        """What a checkpoint needs to be used, by name."""
        return {
            "state_dict": self.network.state_dict(),
            "normalisation": self.normalisation,
            "epoch": self.epoch,
        }

    def everything(self) -> dict[str, Any]:
        """What a checkpoint needs to train on as if it had never stopped, by name."""
        random = {name: generator.get_state() for name, generator in self.generators.items()}
        random["cpu"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            random["cuda"] = torch.cuda.get_rng_state(self._device())
        return self.weights() | {
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random,
            "history": self.history,
            "best": self.best,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go back to where `everything` was taken."""
        self.network.load_state_dict(content["state_dict"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])
        for name, generator in self.generators.items():
            generator.set_state(content["random"][name])
        torch.set_rng_state(content["random"]["cpu"])
        if torch.cuda.is_initialized() and "cuda" in content["random"]:
            torch.cuda.set_rng_state(content["random"]["cuda"], self._device())
        self.normalisation, self.history, self.best = (
            content[name] for name in ("normalisation", "history", "best")
        )

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write the checkpoint to go on from, and keep the one before."""
    write_checkpoint(folder / LAST, content, previous=folder / PREVIOUS)


def latest(folder: Path, identity: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """The newest whole checkpoint of a fold.

    A damaged one is passed over for the one before it: training from there leads to the same end.

    Args:
        folder: the fold's.
        identity: what the checkpoint must carry.

    Returns:
        (its content, or None where the fold begins anew; a line for the user about a damaged one, or None).

    Raises:
        ValueError: another run's checkpoint, or a damaged one with none before it; nothing is written over.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    damaged = None
    for path in (last, previous):
        if not path.exists():
            continue
        try:
            return own_checkpoint(path, identity), damaged and f"{damaged}; {previous.name} is used"
        except DamagedCheckpoint as error:
            damaged = damaged or str(error)
    if damaged is not None:
        raise InputError(f"{damaged}; remove it to begin this fold anew")
    return None, None


def own_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint that carries `identity`.

    Raises:
        ValueError: a damaged one, or another run's; the message says in what they differ.
    """
    content = read_checkpoint(path)
    found = content.get("identity")
    if found != identity:
        if not isinstance(found, dict) or not isinstance(found.get("run"), dict):
            raise InputError(f"{path}: expected a checkpoint of this run, got one without a run's name")
        parts = [part | part.pop("run") for part in (dict(found), dict(identity))]
        raise InputError(
            f"{path}: expected a checkpoint of this run and fold, got another's ({'; '.join(differences(*parts))})"
        )
    return content
