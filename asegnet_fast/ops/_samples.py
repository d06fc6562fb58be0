"""Arrangements of memory that the samples of several ops share."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("nchw", "channels_last", "strided", "expanded")


def lay_out(t: Tensor, layout: str) -> Tensor:
    """`t`'s values in another arrangement of memory; "contiguous" is "nchw" of any number of dimensions."""
    if layout == "channels_last":
        format_of = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim())
        if format_of is not None:
            return t.contiguous(memory_format=format_of)
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":  # every second column of a wider tensor
        wide = torch.zeros((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype, device=t.device)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout == "reversed":  # every second entry of the last axis of a wider tensor, axes reversed in memory
        wide = t.new_zeros((2 * t.shape[-1], *t.shape[-2::-1]))
        wide[::2] = t.permute(*range(t.dim())[::-1])
        return wide[::2].permute(*range(t.dim())[::-1])
    if layout == "expanded":  # one image seen several times, stride 0
        return t[:1].expand_as(t) if t.shape[0] else t
    return t


def with_special_values(x: Tensor, generator: torch.Generator) -> Tensor:
    """float64 `x` with fractions in half of its places, and NaN, infinities and both zeros in a fifth."""
    x = x + torch.where(
        torch.rand(x.shape, generator=generator) < 0.5, torch.rand(x.shape, generator=generator), 0.0
    )
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0], dtype=x.dtype)
    pick = torch.randint(0, len(special), x.shape, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.2, special[pick], x)
