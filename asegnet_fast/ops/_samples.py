"""Arrangements of memory that the samples of several ops share."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("nchw", "channels_last", "strided", "expanded")


def lay_out(t: Tensor, layout: str) -> Tensor:
    """`t`'s values in another arrangement of memory."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "strided":  # every second column of a wider tensor
        wide = torch.zeros((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype, device=t.device)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout == "expanded":  # one image seen several times, stride 0
        return t[:1].expand_as(t) if t.shape[0] else t
    return t
