"""One fold, top to bottom: split, network, epochs, metrics, files."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asegnet_fast.checkpoint import build_network, normalised, read_checkpoint, write_checkpoint
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.overlap import dice, pixel_counts
from asegnet_fast.files import read_json, write_csv, write_json
from asegnet_fast.training.config import Row, Settings
from asegnet_fast.training.metrics import summarise
from asegnet_fast.training.progress import Reporter


class TrainingError(RuntimeError):
    """A fold cannot go on; the message says where and why."""


@dataclass(frozen=True)
class Slices:
    """The whole data set on the device, and what identifies it.

    images: uint8 [N, S, S], masks: uint8 [N, S, S], groups: which slices belong together, one entry for each.
    """

    images: Tensor
    masks: Tensor
    groups: np.ndarray
    num_classes: int


def derived_seed(seed: int, fold: int, purpose: int) -> int:
    """A seed of its own for each fold and purpose, the same for every loss, so that rows compare."""
    return int(np.random.SeedSequence([seed, fold, purpose]).generate_state(1)[0])


def initial_network(settings: Settings, model: str, num_classes: int, fold: int) -> torch.nn.Module:
    """The network before its first step, on the CPU; the same for every loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(settings.seed, fold, 0))
        return build_network(model, settings.network(model, num_classes))


def inner_split(train: np.ndarray, groups: np.ndarray, share: float, by_group: bool, seed: int) -> tuple:
    """Part the training slices into those trained on and an inner validation set.

    Args:
        train: indices of the fold's training slices.
        groups: the group of every slice of the data set.
        share: share of the training slices to set aside, 0 for none.
        by_group: whether groups stay whole.
        seed: decides which are set aside.

    Returns:
        (training indices, inner validation indices), both sorted.

    Raises:
        ValueError: nothing would be left on one side.
    """
    if share == 0:
        return train, train[:0]
    units = np.asarray(groups)[train] if by_group else np.arange(len(train))
    names = np.unique(units)
    if len(names) < 2:
        raise InputError(
            f"--inner-validation: expected at least 2 groups in each fold's training part, got {len(names)}"
        )
    wanted = max(1, round(share * len(train)))
    aside = np.zeros(len(train), dtype=bool)
    for name in np.random.default_rng(seed).permutation(names)[:-1]:
        aside |= units == name
        if aside.sum() >= wanted:
            break
    return train[~aside], train[aside]


def training_part(
    settings: Settings, train: np.ndarray, groups: np.ndarray, fold: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a fold trains on, and its inner validation set.

    Args:
        settings: the run's settings.
        train: indices of the fold's training slices.
        groups: the group of every slice of the data set.
        fold: 0..settings.folds-1.

    Returns:
        (training indices, inner validation indices), both sorted.

    Raises:
        ValueError: nothing would be left on one side, or less than one batch to train on.
    """
    by_group = settings.split == "patient"
    seed = derived_seed(settings.seed, fold, 1)
    train, inner = inner_split(train, groups, settings.inner_validation, by_group, seed)
    if len(train) < settings.batch_size:
        raise InputError(
            f"--batch-size: expected at most {len(train)}, the training slices of fold {fold}, "
            f"got {settings.batch_size}"
        )
    return train, inner


def predict_labels(network: torch.nn.Module, images: Tensor, normalisation: dict, precision: str) -> Tensor:
    """Predict the label of every pixel of a batch of slices.

    Args:
        network: in evaluation mode, on the images' device.
        images: uint8 [N, S, S].
        normalisation: {"mean", "sd"}.
        precision: "fp32" or "bf16".

    Returns:
        int64 [N, S, S].
    """
    with torch.inference_mode(), autocast(images.device, precision):
        inputs = normalised(images, normalisation).contiguous(memory_format=torch.channels_last)
        return network(inputs).argmax(1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast region of `--precision` on `device`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def evaluate(
    network: torch.nn.Module, slices: Slices, indices: np.ndarray, normalisation: dict, settings: Settings
) -> np.ndarray:
    """Counts [len(indices), lesion classes, 4] of the network on the slices at `indices`."""
    network.eval()
    counts = []
    for start in range(0, len(indices), settings.batch_size):
        batch = torch.from_numpy(indices[start : start + settings.batch_size]).to(slices.images.device)
        labels = predict_labels(network, slices.images[batch], normalisation, settings.precision)
        counts.append(pixel_counts(labels, slices.masks[batch], slices.num_classes))
    return torch.cat(counts).cpu().numpy()


def training_step(
    network, loss_of, optimiser, slices: Slices, batch: Tensor, normalisation: dict, precision: str
):
    """One step on the slices at `batch`; returns the loss, detached, on the device."""
    with autocast(slices.images.device, precision):
        inputs = normalised(slices.images[batch], normalisation).contiguous(memory_format=torch.channels_last)
        loss = loss_of(network(inputs), slices.masks[batch])
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def optimiser_of(network: torch.nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD with momentum, as the paper trains."""
    return torch.optim.SGD(
        network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def finished_fold(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a finished fold, or None where it has still to be run.

    Raises:
        ValueError: the file is there but damaged or another run's; the message names it.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return None
    metrics = read_json(path)
    if metrics.get("identity") != identity or not {"counts", "seconds", "epochs"} <= set(metrics):
        raise InputError(f"{path}: expected this run's metrics of {identity['row']}, got another run's")
    try:
        counts = np.array(metrics["counts"], dtype=np.int64)
        whole = counts.ndim == 3 and counts.shape[2] == 4 and bool((counts >= 0).all())
        whole = whole and len(counts) == len(metrics["test_indices"]) > 0 and metrics["seconds"] >= 0
    except (KeyError, TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(f"{path}: expected counts [slices, classes, 4] of the test slices, got damaged ones")
    return metrics


def run_fold(
    settings: Settings,
    row: Row,
    fold: int,
    split: tuple[np.ndarray, np.ndarray],
    slices: Slices,
    folder: Path,
    identity: dict[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Train one row on one fold, or go on where its checkpoint stands, and measure it on the test slices.

    The test slices are measured after every epoch for the curves; the reported metrics are those after the last
    epoch, so nothing is chosen on them.

    Args:
        settings: the run's settings.
        row: model and loss.
        fold: 0..settings.folds-1.
        split: (training, test) indices of the fold.
        slices: the data on the device.
        folder: receives checkpoint_last.pt, history.csv and metrics.json, and checkpoint_best.pt where there is
            an inner validation set.
        identity: run, data, row and fold; kept in the files, and a checkpoint with another one is refused.
        reporter: shows progress.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: a checkpoint that is damaged or another run's, or settings that this fold cannot meet.
        TrainingError: the loss became NaN or infinite; the last good checkpoint stays.
    """
    device = slices.images.device
    name = f"{row.folder}/fold{fold}"

    # 1. Who is trained on, who is measured.
    train, test = split
    train, inner = training_part(settings, train, slices.groups, fold)
    steps = len(train) // settings.batch_size

    # 2. Normalisation by the training part alone.
    pixels = slices.images[torch.from_numpy(train).to(device)].double()
    normalisation = {"mean": pixels.mean().item(), "sd": max(pixels.std().item(), 1e-3)}
    del pixels

    # 3. Network, optimiser, schedule, random numbers.
    network = initial_network(settings, row.model, slices.num_classes, fold).to(device)
    optimiser = optimiser_of(network, settings)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_halve_every, gamma=0.5)
    order = torch.Generator().manual_seed(derived_seed(settings.seed, fold, 2))
    loss_of = row.loss.function()
    history: list[dict[str, Any]] = []
    seconds = 0.0
    best = {"epoch": 0, "dice": -math.inf}
    counts: np.ndarray | None = None

    # 4. Go on where a checkpoint stands.
    last = folder / "checkpoint_last.pt"
    if last.exists():
        state = read_checkpoint(last)
        if state.get("identity") != identity:
            raise InputError(f"{last}: expected a checkpoint of this run's {name}, got another run's")
        network.load_state_dict(state["state_dict"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        order.set_state(state["random"]["order"])
        torch.set_rng_state(state["random"]["cpu"])
        if device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], device)
        history, seconds, best = state["history"], state["seconds"], state["best"]
        reporter.say(f"{name}: goes on after epoch {state['epoch']}")

    def content(epoch: int) -> dict[str, Any]:
        random = {"order": order.get_state(), "cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return {
            "model": row.model,
            "network": settings.network(row.model, slices.num_classes),
            "state_dict": network.state_dict(),
            "normalisation": normalisation,
            "epoch": epoch,
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "random": random,
            "history": history,
            "seconds": seconds,
            "best": best,
            "identity": identity,
            "settings": settings.to_json(),
        }

    # 5. Epochs.
    saved = time.monotonic()
    reporter.epochs(len(history), settings.epochs, history[-1] if history else None, name)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        began = time.monotonic()
        network.train()
        lr = schedule.get_last_lr()[0]
        losses = torch.empty(steps, device=device)
        permutation = torch.from_numpy(train)[torch.randperm(len(train), generator=order)].to(device)
        for step in range(steps):
            batch = permutation[step * settings.batch_size : (step + 1) * settings.batch_size]
            losses[step] = training_step(
                network, loss_of, optimiser, slices, batch, normalisation, settings.precision
            )
            reporter.step(step + 1, steps, losses[step], lr)
        losses = losses.cpu()
        if not losses.isfinite().all():
            bad = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"{name}: expected a finite loss, got {losses[bad].item()} at epoch {epoch}, step {bad + 1} "
                f"(learning rate {lr:g}; try a smaller --lr)"
            )
        schedule.step()

        counts = evaluate(network, slices, test, normalisation, settings)
        scores = summarise([counts])
        record = {
            "epoch": epoch,
            "lr": lr,
            "loss": losses.mean().item(),
            "test_dice": scores["dice"]["pooled"],
            "test_dice_per_image": scores["dice"]["per_image_mean"],
            "test_sensitivity": scores["sensitivity"]["pooled"],
            "test_specificity": scores["specificity"]["pooled"],
        }
        if len(inner):
            inner_counts = evaluate(network, slices, inner, normalisation, settings)
            record["inner_dice"] = float(dice(inner_counts.sum(0)).mean())
        record["seconds"] = round(time.monotonic() - began, 3)
        seconds += record["seconds"]
        history.append(record)
        reporter.epochs(epoch, settings.epochs, record, name)

        if len(inner) and record["inner_dice"] > best["dice"]:
            best = {"epoch": epoch, "dice": record["inner_dice"]}
            write_checkpoint(folder / "checkpoint_best.pt", content(epoch))
        if epoch == settings.epochs or time.monotonic() - saved >= settings.checkpoint_seconds:
            write_checkpoint(last, content(epoch))
            write_csv(folder / "history.csv", history)
            saved = time.monotonic()

    # 6. Metrics of the last epoch.
    if counts is None:  # stopped between the last checkpoint and this point
        counts = evaluate(network, slices, test, normalisation, settings)
    metrics = {
        "identity": identity,
        "epochs": settings.epochs,
        **summarise([counts]),
        "training_slices": len(train),
        "inner_validation": {"slices": len(inner), **best} if len(inner) else None,
        "test_indices": test.tolist(),
        "count_names": ["tp", "fp", "fn", "tn"],
        "counts": counts.tolist(),
        "seconds": round(seconds, 3),
    }
    write_csv(folder / "history.csv", history)
    write_json(folder / "metrics.json", metrics)
    return metrics
