"""What a model gives for example inputs, and what it keeps for backward, and how far two runs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from asegnet_fast.fusion.indices import PoolIndices


class Run(NamedTuple):
    """Outputs of one forward pass as a flat list, and the bytes that it keeps for backward, weights not counted."""

    outputs: list[object]
    saved_bytes: int


def as_call(example_inputs: object) -> tuple[tuple, dict]:
    """(args, kwargs) from a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def run(model: nn.Module, example_inputs: object) -> Run:
    """Run `model` once in its present mode; random numbers go on as if nothing had been drawn."""
    args, kwargs = as_call(example_inputs)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[object, int] = {}

    def pack(t: Tensor) -> Tensor:
        if isinstance(t, PoolIndices):
            seen[id(t)] = t.nbytes_held()
        else:
            storage = t.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
        return t

    with (
        torch.random.fork_rng(list(devices)),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        result = model(*args, **kwargs)
    # `result` holds the graph, so that no address was used twice.
    outputs = [o.detach() if isinstance(o, Tensor) else o for o in pytree.tree_leaves(result)]
    return Run(outputs, sum(seen.values()))


def largest_difference(before: Run, after: Run) -> float:
    """Of any two tensors of the outputs, relative to the largest magnitude in the first; infinite for other shapes."""
    worst = 0.0
    if len(before.outputs) != len(after.outputs):
        return float("inf")
    for a, b in zip(before.outputs, after.outputs, strict=True):
        if not isinstance(a, Tensor):
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        worst = max(worst, _difference(a, b))
    return worst


def _difference(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    if not a.is_floating_point():
        return float("inf")
    same = (a == b) | (a.isnan() & b.isnan())
    off = torch.where(same, 0, (a.double() - b.double()).abs()).max()
    return float(off / a.double().abs().max().clamp_min(1e-300)) if off == off else float("inf")
