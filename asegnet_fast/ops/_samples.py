"""Arrangements of memory that the samples of several ops share."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("nchw", "channels_last", "strided", "expanded")


def lay_out(t: Tensor, layout: str) -> Tensor:
    """`t`'s values in another arrangement of memory."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last if t.dim() == 4 else torch.channels_last_3d)
    if layout == "strided":  # every second column of a wider tensor
        wide = torch.zeros((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype, device=t.device)
        wide[..., ::2] = t
        return wide[..., ::2]
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
