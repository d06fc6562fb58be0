"""Region sums of the targets that other libraries take: label maps, one-hot maps, and one map a channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asegnet_fast.ops._checks import check_choice, check_tensor, wrong_value
from asegnet_fast.ops.tversky.op import LABELS, RegionSums, region_sums

REDUCTIONS = ("mean", "sum", "none")


def refuse(name: str, value: object, expected: str) -> None:
    """Raise ValueError for a setting that the fused pass cannot serve, unless it is off."""
    if value is not None and value is not False:
        raise wrong_value(name, f"{expected}, as the fused pass needs it", value)


def integer_labels(target: Tensor) -> Tensor:
    """A target in a dtype that labels have: whole floating-point numbers become int64.

    Raises:
        ValueError: a fraction, NaN or infinity among them.
    """
    check_tensor("target", target)
    if target.dtype in LABELS:
        return target
    labels = target.to(torch.int64)
    _require("target", "whole numbers", labels == target)
    return labels


def one_hot_labels(target: Tensor) -> Tensor:
    """Labels [N, *spatial] of a one-hot map [N, C, *spatial].

    Raises:
        ValueError: a pixel that is not exactly one class (soft labels and multi-label targets have no such map).
    """
    hit = target == 1
    _require("target", "a one-hot map (exactly one 1 a pixel, 0 elsewhere)", (hit | (target == 0)).all(1))
    _require("target", "a one-hot map (exactly one 1 a pixel, 0 elsewhere)", hit.sum(1) == 1)
    return hit.to(torch.uint8).argmax(1)


def _require(name: str, expected: str, holds: Tensor) -> None:
    if torch.compiler.is_compiling():  # a compiled graph cannot raise by value, but it can stop
        torch._assert_async(holds.all(), f"{name}: expected {expected}, got other values")
    elif not bool(holds.all()):
        raise ValueError(f"{name}: expected {expected}, got other values")


def softmax_sums(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> RegionSums:
    """Sums per image and class of softmax probabilities.

    Args:
        logits: [N, C, *spatial], C at least 2.
        target: labels [N, *spatial] or [N, 1, *spatial], or a one-hot map [N, C, *spatial].
        ignore_index: label of pixels that enter no sum; of labels only.

    Returns:
        RegionSums of tensors [N, C].
    """
    if target.dim() == logits.dim() and target.shape[1] == logits.shape[1]:
        refuse("ignore_index", ignore_index, "None beside a one-hot target")
        target = one_hot_labels(target)
    elif target.dim() == logits.dim() and target.shape[1] == 1:
        target = target.squeeze(1)
    return region_sums(logits, integer_labels(target), ignore_index)


def sigmoid_sums(
    logits: Tensor, target: Tensor, ignore_index: int | None = None
) -> tuple[RegionSums, Tensor]:
    """Sums per image and channel of sigmoid probabilities; channels are independent.

    Args:
        logits: [N, C, *spatial], C at least 1.
        target: 0 and 1 (and `ignore_index`), [N, C, *spatial].
        ignore_index: value of elements that enter no sum.

    Returns:
        (RegionSums of tensors [N, C], for target 1; ce of target 0 [N, C]).
    """
    if target.shape != logits.shape:
        raise wrong_value("target", f"shape {tuple(logits.shape)}, one map a channel", target)
    n, c = logits.shape[:2]
    flat = logits.reshape(n * c, 1, *logits.shape[2:])
    sums = region_sums(flat, integer_labels(target).reshape(n * c, *target.shape[2:]), ignore_index)
    return RegionSums(*(s[:, 1].reshape(n, c) for s in sums)), sums.ce[:, 0].reshape(n, c)


def channel_maps(labels: Tensor, channels: int) -> Tensor:
    """One bool map a class [N, channels, *spatial] of labels [N, 1, *spatial]."""
    classes = torch.arange(channels, device=labels.device)
    return labels == classes.reshape(1, channels, *(1 for _ in labels.shape[2:]))


def over_batch(sums: RegionSums) -> RegionSums:
    """The sums of the whole batch, tensors [1, C]."""
    return RegionSums(*(s.sum(0, keepdim=True) for s in sums))


def without_first(sums: RegionSums) -> RegionSums:
    """The sums without class 0."""
    return RegionSums(*(s[:, 1:] for s in sums))


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """`loss` after "mean", "sum" or "none"."""
    return {"mean": loss.mean, "sum": loss.sum, "none": loss.clone}[reduction]()


def check_reduction(reduction: object) -> str:
    """The reduction's name; an enumeration's value counts."""
    name = getattr(reduction, "value", reduction)
    check_choice("reduction", name, REDUCTIONS)
    return name


def as_weight(weight: Tensor | Sequence[float] | float | None) -> Tensor | None:
    """Class weights as a tensor."""
    return None if weight is None else torch.as_tensor(weight, dtype=torch.get_default_dtype())
