"""One fold, top to bottom: split, network, epochs, metrics, files."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asegnet_fast.checkpoint import write_checkpoint
from asegnet_fast.environment import deterministic
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.overlap import dice
from asegnet_fast.files import read_csv, read_json, remove_leftovers, write_csv, write_json
from asegnet_fast.training import distributed
from asegnet_fast.training.augment import Augmentation
from asegnet_fast.training.config import Row, Settings
from asegnet_fast.training.metrics import summarise
from asegnet_fast.training.progress import Reporter
from asegnet_fast.training.split import derived_seed, training_part
from asegnet_fast.training.state import BEST, PREVIOUS, FoldState, latest, own_checkpoint, save
from asegnet_fast.training.steps import (
    Slices,
    evaluate,
    initial_network,
    normalisation_of,
    optimiser_of,
    scores_of_test,
    training_step,
)


class TrainingError(RuntimeError):
    """A fold cannot go on; the message says where and why."""


def fold_name(row: Row, fold: int | None) -> str:
    """What messages call a row on a fold: the folder of it in a cross-validation."""
    return row.folder if fold is None else f"{row.folder}/fold{fold}"


def finished_fold(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a finished fold, or None where it has still to be run.

    Raises:
        ValueError: the file is there but damaged or another run's; the message names it.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return None
    metrics = read_json(path)
    if metrics.get("identity") != identity or not {"counts", "epochs"} <= set(metrics):
        raise InputError(f"{path}: expected this run's metrics of {identity['row']}, got another run's")
    try:
        counts = np.array(metrics["counts"], dtype=np.int64)
        if identity["fold"] is None:  # nothing was held out
            whole = counts.size == len(metrics["test_indices"]) == 0
        else:
            whole = counts.ndim == 3 and counts.shape[2] == 4 and bool((counts >= 0).all())
            whole = whole and len(counts) == len(metrics["test_indices"]) > 0
    except (KeyError, TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(f"{path}: expected counts [slices, classes, 4] of the test slices, got damaged ones")
    return metrics


def fold_seconds(folder: Path) -> float:
    """How long the epochs of a fold took. It stands in history.csv alone: a clock never says the same twice.

    Raises:
        ValueError: no history.csv, or a damaged one; the message names it.
    """
    try:
        return sum(float(line["seconds"]) for line in read_csv(folder / "history.csv"))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / 'history.csv'}: expected seconds in each line, got none") from None


def run_fold(
    settings: Settings,
    row: Row,
    fold: int | None,
    split: tuple[np.ndarray, np.ndarray],
    slices: Slices,
    folder: Path,
    identity: dict[str, Any],
    reporter: Reporter,
    go_on: Callable[[], None] = distributed.stop_together,
) -> dict[str, Any]:
    """Train one row on one fold, or go on where its checkpoint stands, and measure it on the test slices.

    The test slices are measured after every epoch for the curves; nothing is chosen on them. What is reported is
    measured after the last epoch, or with `tested_epoch="best"` at the best epoch of the inner validation.

    Args:
        settings: the run's settings.
        row: model and loss.
        fold: 0..settings.folds-1, or None where all slices are trained on.
        split: (training, test) indices of the fold; there may be no test slices.
        slices: the data on the device.
        folder: receives checkpoint_last.pt, history.csv and metrics.json, and checkpoint_best.pt where there is
            an inner validation set; checkpoint_previous.pt while it trains.
        identity: run, data, row and fold; kept in the files, and a checkpoint with another one is refused.
        reporter: shows progress.
        go_on: called after every step; raises what is to end the training there.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: a checkpoint that is damaged or another run's, or settings that this fold cannot meet.
        TrainingError: the loss became NaN or infinite; the last good checkpoint stays.
        OSError: a file cannot be written; the checkpoints written before stay.
    """
    device = slices.images.device
    name = fold_name(row, fold)

    # 1. Who is trained on, who is measured.
    train, test = split
    train, inner = training_part(settings, train, slices.groups, fold)
    steps = len(train) // settings.batch_size

    cuda = [device] if device.type == "cuda" else []
    with deterministic(settings.deterministic), torch.random.fork_rng(devices=cuda):
        # 2. Network, optimiser, schedule, random numbers; normalisation by the training part alone.
        torch.manual_seed(derived_seed(settings.seed, fold, 3))
        network = initial_network(settings, row.model, slices.num_classes, fold).to(device)
        optimiser = optimiser_of(network, settings)
        order = torch.Generator().manual_seed(derived_seed(settings.seed, fold, 2))
        state = FoldState(
            network,
            optimiser,
            torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_halve_every, gamma=0.5),
            normalisation_of(slices.images[torch.from_numpy(train).to(device)]),
            {"order": order},
        )
        loss_of = distributed.common_loss(row.loss.function())
        augment, chance = Augmentation.parse(settings.augment), torch.Generator(device)
        if augment is not None:
            # Processes that share a batch change their parts of it as one process would.
            part = (int(distributed.share(np.arange(settings.batch_size))[0]), settings.batch_size)
            augment = functools.partial(augment, generator=chance, part=part)
        counts: np.ndarray | None = None
        origin = {
            "model": row.model,
            "network": settings.network(row.model, slices.num_classes),
            "identity": identity,
            "settings": settings.to_json(),
            "label_values": list(slices.label_values),
        }

        # 3. Go on where a checkpoint stands.
        if distributed.first():
            remove_leftovers(folder)
        found, damaged = distributed.on_first(latest, folder, identity)
        if damaged is not None:
            reporter.say(f"note: {damaged}")
        if found is not None:
            state.restore(found)
            reporter.say(f"{name}: goes on after epoch {state.epoch}")
        del found

        # 4. Epochs.
        in_training = distributed.parallel(network)
        saved = time.monotonic()
        reporter.epochs(state.epoch, settings.epochs, state.history[-1] if state.history else None, name)
        while state.epoch < settings.epochs and not state.stopped_early(settings.early_stopping):
            began = time.monotonic()
            epoch = state.epoch + 1
            network.train()
            lr = state.schedule.get_last_lr()[0]
            losses = torch.empty(steps, device=device)
            chance.manual_seed(
                derived_seed(settings.seed, fold, 4, epoch)
            )  # anew, so no checkpoint needs its state
            permutation = torch.from_numpy(train)[torch.randperm(len(train), generator=order)].to(device)
            for step in range(steps):
                batch = permutation[step * settings.batch_size : (step + 1) * settings.batch_size]
                batch = distributed.share(batch)
                losses[step] = training_step(
                    in_training,
                    loss_of,
                    optimiser,
                    slices,
                    batch,
                    state.normalisation,
                    settings.precision,
                    augment,
                )
                go_on()
                reporter.step(step + 1, steps, losses[step], lr)
            losses = losses.cpu()
            if not losses.isfinite().all():
                bad = int((~losses.isfinite()).nonzero()[0])
                raise TrainingError(
                    f"{name}: expected a finite loss, got {losses[bad].item()} at epoch {epoch}, step {bad + 1} "
                    f"(learning rate {lr:g}; try a smaller --lr)"
                )
            state.schedule.step()

            record = {"epoch": epoch, "lr": lr, "loss": losses.mean().item()}
            if len(test):
                counts = evaluate(network, slices, test, state.normalisation, settings)
                record |= scores_of_test(counts)
            if len(inner):
                inner_counts = evaluate(network, slices, inner, state.normalisation, settings)
                record["inner_dice"] = float(dice(inner_counts.sum(0)).mean())
            record["seconds"] = round(time.monotonic() - began, 3)
            state.history.append(record)
            reporter.epochs(epoch, settings.epochs, record, name)

            if len(inner) and record["inner_dice"] > state.best["dice"]:
                state.best = {"epoch": epoch, "dice": record["inner_dice"]}
                if distributed.first():
                    write_checkpoint(folder / BEST, origin | state.weights())
            ends = epoch == settings.epochs or state.stopped_early(settings.early_stopping)
            due = ends or time.monotonic() - saved >= settings.checkpoint_seconds
            if due and distributed.first():
                save(folder, origin | state.everything())
                write_csv(folder / "history.csv", state.history)
                saved = time.monotonic()

        # 5. Metrics of the last epoch, or of the best.
        if settings.tested_epoch == "best":
            best = distributed.on_first(own_checkpoint, folder / BEST, identity)
            network.load_state_dict(best["state_dict"])
            counts = None
        if counts is None:  # also where it was stopped between the last checkpoint and this point
            counts = evaluate(network, slices, test, state.normalisation, settings)
        metrics = {
            "identity": identity,
            "epochs": state.epoch,
            "tested_epoch": state.best["epoch"] if settings.tested_epoch == "best" else state.epoch,
            **(summarise([counts]) if len(test) else {}),
            "training_slices": len(train),
            "inner_validation": {"slices": len(inner), **state.best} if len(inner) else None,
            "test_indices": test.tolist(),
            "count_names": ["tp", "fp", "fn", "tn"],
            "counts": counts.tolist(),
        }
        if distributed.first():
            write_csv(folder / "history.csv", state.history)
            write_json(folder / "metrics.json", metrics)
            (folder / PREVIOUS).unlink(missing_ok=True)  # of a finished fold one is enough
    return metrics
