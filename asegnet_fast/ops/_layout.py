"""torch's rule for the memory format that a tensor's strides suggest; csrc/common/tensor.h has the C++ twin."""

from __future__ import annotations

import torch
from torch import Tensor

#: Axes from the innermost on in channels_last and channels_last_3d.
_ORDER = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}


def is_channels_last(t: Tensor) -> bool:
    """Whether the strides of a 4-D or 5-D tensor run in the order N, (D,) H, W, C (dense or not)."""
    if t.dim() not in _ORDER or t.stride(1) == 0:
        return False
    least = 0
    for d in _ORDER[t.dim()]:
        if t.size(d) == 0 or t.stride(d) < least:
            return False
        if d == 0 and least == t.stride(1):  # [N, 1, 1, 1] and the like stay NCHW
            return False
        least = t.stride(d) * (t.size(d) if t.size(d) > 1 else 1)
    return True


def memory_format(t: Tensor) -> torch.memory_format:
    """The format in which an op returns its result when `t` is its leading input."""
    if not is_channels_last(t):
        return torch.contiguous_format
    return torch.channels_last if t.dim() == 4 else torch.channels_last_3d
