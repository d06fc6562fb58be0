"""Exchange between codes (a byte per window) and torch's indices (a flat int64 position in the plane)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asegnet_fast.ops._checks import check_tensor, wrong_type, wrong_value
from asegnet_fast.ops.max_pool2x2.op import output_sides
from asegnet_fast.ops.max_pool2x2.reference import check_code, readable


def _corner(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each window's first element."""
    return 2 * torch.arange(h, device=device)[:, None], 2 * torch.arange(w, device=device)


def codes_to_indices(code: Tensor, input_size: Sequence[int] | None = None) -> Tensor:
    """Positions as `torch.nn.functional.max_pool2d(..., return_indices=True)` returns them.

    Args:
        code: uint8 [..., h, w], values 0..3.
        input_size: size of the map that was pooled; its last two entries (H, W) count. None: 2h, 2w.

    Returns:
        int64 [..., h, w], row * W + column.

    Raises:
        TypeError: code is not a uint8 tensor. ValueError: input_size is out of range.
        RuntimeError: a code is above 3 or lies outside the map (on the CPU, outside compile and transforms).
    """
    check_tensor("code", code, (2, 3, 4))
    if code.dtype != torch.uint8:
        raise wrong_type("code", "dtype uint8", code)
    height, width = output_sides(input_size, *code.shape[-2:])
    check_code(code, height, width)
    top, left = _corner(*code.shape[-2:], code.device)
    return (top + (code >> 1)) * width + left + (code & 1)


def indices_to_codes(indices: Tensor, input_size: Sequence[int] | None = None) -> Tensor:
    """Codes from torch's indices of a 2x2 pool with stride 2.

    Args:
        indices: int64 [..., h, w], row * W + column of each window's maximum.
        input_size: size of the map that was pooled; its last two entries (H, W) count. None: 2h, 2w.

    Returns:
        uint8 [..., h, w], values 0..3.

    Raises:
        TypeError: indices is not an int64 tensor. ValueError: input_size is out of range.
        RuntimeError: an index does not lie in its own window (on the CPU, outside compile and transforms).
    """
    check_tensor("indices", indices, (2, 3, 4))
    if indices.dtype != torch.int64:
        raise wrong_type("indices", "dtype int64", indices)
    height, width = output_sides(input_size, *indices.shape[-2:])
    if width < 1:
        raise wrong_value("input_size", "a width of at least 1", input_size)
    top, left = _corner(*indices.shape[-2:], indices.device)
    dy, dx = indices.div(width, rounding_mode="floor") - top, indices % width - left
    bad = (dy < 0) | (dy > 1) | (dx < 0) | (dx > 1) | (indices >= height * width) | (indices < 0)
    if readable(indices) and bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise RuntimeError(
            "indices: expected each index inside its own 2x2 window of a "
            f"{height} x {width} map, got {int(indices[tuple(where)])} at {where}"
        )
    return (2 * dy + dx).to(torch.uint8)
