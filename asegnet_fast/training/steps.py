"""A network's steps on slices: from its first weights over a training step to its counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asegnet_fast.checkpoint import autocast, build_network, normalised
from asegnet_fast.evaluation.overlap import pixel_counts
from asegnet_fast.training import distributed
from asegnet_fast.training.config import Settings
from asegnet_fast.training.metrics import summarise
from asegnet_fast.training.split import derived_seed


@dataclass(frozen=True)
class Slices:
    """The whole data set on the device, and what identifies it.

    images: uint8 [N, S, S], masks: uint8 [N, S, S], groups: which slices belong together, one entry for each;
    label_values: the files' labels behind class 1, 2, ..., or all merged ones.
    """

    images: Tensor
    masks: Tensor
    groups: np.ndarray
    num_classes: int
    label_values: tuple[int, ...] = ()


def initial_network(settings: Settings, model: str, num_classes: int, fold: int | None) -> torch.nn.Module:
    """The network before its first step, on the CPU; the same for every loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(settings.seed, fold, 0))
        return build_network(model, settings.network(model, num_classes))


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


def evaluate(
    network: torch.nn.Module, slices: Slices, indices: np.ndarray, normalisation: dict, settings: Settings
) -> np.ndarray:
    """Counts [len(indices), lesion classes, 4] of the network on the slices at `indices`."""
    network.eval()
    indices = distributed.share(indices)
    counts = [torch.zeros(0, slices.num_classes - 1, 4, dtype=torch.int64, device=slices.images.device)]
    for start in range(0, len(indices), settings.batch_size):
        batch = torch.from_numpy(indices[start : start + settings.batch_size]).to(slices.images.device)
        labels = predict_labels(network, slices.images[batch], normalisation, settings.precision)
        counts.append(pixel_counts(labels, slices.masks[batch], slices.num_classes))
    return distributed.gather(torch.cat(counts).cpu().numpy())


def training_step(
    network,
    loss_of,
    optimiser,
    slices: Slices,
    batch: Tensor,
    normalisation: dict,
    precision: str,
    augment=None,
):
    """One step on the slices at `batch`; returns the loss, detached, on the device.

    `augment` changes (images, masks), uint8 [n, S, S] both, before the network sees them.
    """
    images, masks = slices.images[batch], slices.masks[batch]
    if augment is not None:
        images, masks = augment(images, masks)
    with autocast(slices.images.device, precision):
        inputs = normalised(images, normalisation).contiguous(memory_format=torch.channels_last)
        loss = loss_of(network(inputs), masks)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def optimiser_of(network: torch.nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD with momentum, as the paper trains."""
    return torch.optim.SGD(
        network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def normalisation_of(images: Tensor) -> dict[str, float]:
    """{"mean", "sd"} of the pixels of uint8 [N, S, S], in 0..255; sd is at least 0.001."""
    pixels = images.double()
    return {"mean": pixels.mean().item(), "sd": max(pixels.std().item(), 1e-3)}


def scores_of_test(counts: np.ndarray) -> dict[str, Any]:
    """What history.csv says of the test slices after an epoch."""
    scores = summarise([counts])
    return {
        "test_dice": scores["dice"]["pooled"],
        "test_dice_per_image": scores["dice"]["per_image_mean"],
        "test_sensitivity": scores["sensitivity"]["pooled"],
        "test_specificity": scores["specificity"]["pooled"],
    }
