"""Tensors anywhere in memory: any order of axes, steps between elements, any storage offset."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


def arranged(t: Tensor, order: Sequence[int], steps: Sequence[int], offset: int) -> Tensor:
    """`t`'s values with its axes in memory in the given order, outermost first, and a step along each of them.

    The memory between the elements holds NaN, or the largest integer: a kernel that reads there is found out.
    """
    sizes = [t.shape[d] * step for d, step in zip(order, steps, strict=True)]
    between = math.nan if t.dtype.is_floating_point or t.dtype.is_complex else _largest(t.dtype)
    memory = torch.full((offset + math.prod(sizes),), between, dtype=t.dtype)[offset:].view(sizes)
    for axis, step in enumerate(steps):
        memory = memory[(slice(None),) * axis + (slice(None, None, step),)]
    result = memory.permute([list(order).index(d) for d in range(t.dim())])
    assert result.data_ptr() or not t.numel()
    return result.copy_(t)


def _largest(dtype: torch.dtype) -> int:
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


@st.composite
def arrangements(draw, dims: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Arguments of `arranged`: often NCHW or channels_last, dense or as a slice of channels, else anything."""
    plain = tuple(range(dims))
    channels_last = (0, *range(2, dims), 1) if dims > 1 else plain
    order = draw(st.sampled_from((plain, channels_last, None)))
    if order is None:
        order = tuple(draw(st.permutations(plain)))
    steps = draw(st.sampled_from((None, (1,) * dims, (1,) * dims)))
    if steps is None:
        steps = tuple(draw(st.lists(st.sampled_from((1, 1, 2, 3)), min_size=dims, max_size=dims)))
    return order, steps, draw(st.sampled_from((0, 0, 1, 3)))
