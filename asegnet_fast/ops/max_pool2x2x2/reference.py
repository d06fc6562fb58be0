"""2x2x2 max-pool with positions and its unpool in plain PyTorch: the definition the kernels are tested against.

Everything is gather and select, so autograd, forward mode, vmap and export see through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _positions() -> Iterator[tuple[int, int, int]]:
    """(dz, dy, dx) in the order of the codes 4*dz + 2*dy + dx."""
    return ((k >> 2, k >> 1 & 1, k & 1) for k in range(8))


def _windows(x: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """The eight positions of every window, each [N, C, d, h, w]; what lies outside is absent."""
    d, h, w = (2 * s for s in sides)
    return [x[:, :, dz:d:2, dy:h:2, dx:w:2] for dz, dy, dx in _positions()]


def _padded(part: Tensor, sides: Sequence[int], value: float) -> Tensor:
    d, h, w = (s - p for s, p in zip(sides, part.shape[2:], strict=True))
    return F.pad(part, (0, w, 0, h, 0, d), value=value)


def max_pool2x2x2(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """x [N, C, D, H, W] -> (y, code uint8), [N, C, d, h, w] with d = D // 2, or (D + 1) // 2."""
    sides = [(s + bool(ceil_mode)) // 2 for s in x.shape[2:]]
    best, *others = _windows(x, sides)
    best = best.clone()
    code = torch.zeros_like(best, dtype=torch.uint8)
    for position, candidate in enumerate(others, start=1):
        # A window at the edge (ceil_mode) has no such element: -inf that never wins.
        candidate = _padded(candidate, sides, -torch.inf)
        wins = (candidate > best) | candidate.isnan()
        best = torch.where(wins, candidate, best)
        code = torch.where(wins, torch.full_like(code, position), code)
    return best, code


def check_code(code: Tensor, sides: Sequence[int]) -> None:
    """Raise RuntimeError where a code [N, C, d, h, w] lies outside a map of those sides, if values may be read."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None
    if traced or code.device.type != "cpu" or code.numel() == 0:
        return
    bad = code > 7
    for axis, side in enumerate(sides):
        starts = 2 * torch.arange(code.shape[2 + axis]).reshape([-1] + [1] * (2 - axis))
        bad = bad | (starts + (code >> (2 - axis) & 1) >= side)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise RuntimeError(
            "code: expected positions 0..7 that lie inside the unpooled map, "
            f"got {int(code[tuple(where)])} at {where}"
        )


def max_unpool2x2x2(y: Tensor, code: Tensor, depth: int, height: int, width: int) -> Tensor:
    """y, code [N, C, d, h, w] -> [N, C, depth, height, width]: each value at its code's position, zero elsewhere."""
    check_code(code, (depth, height, width))
    n, c, d, h, w = y.shape
    positions = torch.arange(8, dtype=torch.uint8, device=y.device).reshape(8, 1, 1, 1, 1, 1)
    places = torch.where(code == positions, y, torch.zeros((), dtype=y.dtype, device=y.device))
    places = places.unflatten(0, (2, 2, 2)).permute(3, 4, 5, 0, 6, 1, 7, 2)
    full = places.reshape(n, c, 2 * d, 2 * h, 2 * w)
    return F.pad(full, (0, width - 2 * w, 0, height - 2 * h, 0, depth - 2 * d))


def max_unpool2x2x2_backward(grad: Tensor, code: Tensor) -> Tensor:
    """grad [N, C, D, H, W], code [N, C, d, h, w] -> the gradient at each code's position, [N, C, d, h, w]."""
    check_code(code, grad.shape[2:])
    out = torch.zeros((), dtype=grad.dtype, device=grad.device)
    for position, part in enumerate(_windows(grad, code.shape[2:])):
        out = torch.where(code == position, _padded(part, code.shape[2:], 0.0), out)
    return out


def indices_of(code: Tensor, sides: Sequence[int]) -> Tensor:
    """code [N, C, d, h, w] -> torch's int64 indices in a map of those sides, (z * H + y) * W + x."""
    code = code.long()
    z, y, x = (2 * torch.arange(s, device=code.device) for s in code.shape[2:])
    rows = (z[:, None, None] + (code >> 2)) * sides[1] + y[:, None] + (code >> 1 & 1)
    return rows * sides[2] + x + (code & 1)
