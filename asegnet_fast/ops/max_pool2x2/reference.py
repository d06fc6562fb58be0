"""2x2 max-pool with positions and its unpool in plain PyTorch: the definition the kernels are tested against.

Everything is gather and select, so autograd, forward mode, vmap, export and ONNX see through it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _windows(x: Tensor, height: int, width: int) -> list[Tensor]:
    """The four positions 2*dy + dx of every window, each [N, C, height, width]; what lies outside is absent."""
    return [x[:, :, dy : 2 * height : 2, dx : 2 * width : 2] for dy in (0, 1) for dx in (0, 1)]


def max_pool2x2(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """x [N, C, H, W] -> (y [N, C, h, w], code uint8 [N, C, h, w]) with h = H // 2, or (H + 1) // 2."""
    extra = 1 if ceil_mode else 0
    height, width = (x.shape[-2] + extra) // 2, (x.shape[-1] + extra) // 2
    best, *others = _windows(x, height, width)
    best = best.clone()
    code = torch.zeros_like(best, dtype=torch.uint8)
    for position, candidate in enumerate(others, start=1):
        # A half-filled window at the edge (ceil_mode) has no such element: -inf that never wins.
        h, w = candidate.shape[-2:]
        candidate = F.pad(candidate, (0, width - w, 0, height - h), value=-torch.inf)
        wins = (candidate > best) | candidate.isnan()
        best = torch.where(wins, candidate, best)
        code = torch.where(wins, torch.full_like(code, position), code)
    return best, code


def readable(t: Tensor) -> bool:
    """Whether values may be read: not while tracing or batching, and not on a GPU, where it would synchronise."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None
    return not traced and t.device.type == "cpu" and t.numel() > 0


def check_code(code: Tensor, height: int, width: int) -> None:
    """Raise RuntimeError where a code [..., h, w] lies outside a height x width map, if values may be read."""
    h, w = code.shape[-2:]
    if not readable(code):
        return
    rows = torch.arange(h, device=code.device)[:, None] * 2 + (code >> 1)
    columns = torch.arange(w, device=code.device) * 2 + (code & 1)
    bad = (code > 3) | (rows >= height) | (columns >= width)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise RuntimeError(
            "code: expected positions 0..3 that lie inside the unpooled map, "
            f"got {int(code[tuple(where)])} at {where}"
        )


def max_unpool2x2(y: Tensor, code: Tensor, height: int, width: int) -> Tensor:
    """y, code [N, C, h, w] -> [N, C, height, width]: each value at its code's position, zero elsewhere."""
    check_code(code, height, width)
    h, w = y.shape[-2:]
    positions = torch.arange(4, dtype=torch.uint8, device=y.device)[:, None, None, None, None]
    places = torch.where(
        code == positions, y, torch.zeros((), dtype=y.dtype, device=y.device)
    )  # [4, N, C, h, w]
    full = places.unflatten(0, (2, 2)).permute(2, 3, 4, 0, 5, 1).reshape(y.shape[0], y.shape[1], 2 * h, 2 * w)
    return F.pad(full, (0, width - 2 * w, 0, height - 2 * h))


def max_unpool2x2_backward(grad: Tensor, code: Tensor) -> Tensor:
    """grad [N, C, H, W], code [N, C, h, w] -> the gradient at each code's position, [N, C, h, w]."""
    check_code(code, grad.shape[-2], grad.shape[-1])
    h, w = code.shape[-2:]
    out = torch.zeros((), dtype=grad.dtype, device=grad.device)
    for position, part in enumerate(_windows(grad, h, w)):
        part = F.pad(part, (0, w - part.shape[-1], 0, h - part.shape[-2]))
        out = torch.where(code == position, part, out)
    return out


def _scatter_last(y: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
    n, c = y.shape[:2]
    flat = indices.flatten(2)
    if flat.shape[-1] == 0:
        return y.new_zeros(n, c, height, width)
    # scatter leaves the winner of equal indices open, so the last one is found first.
    order = torch.arange(flat.shape[-1], device=y.device).expand_as(flat)
    last = torch.full((n, c, height * width), -1, dtype=torch.int64, device=y.device)
    last = last.scatter_reduce(2, flat, order, reduce="amax")
    values = y.flatten(2).gather(2, last.clamp(min=0))
    return torch.where(last >= 0, values, torch.zeros((), dtype=y.dtype, device=y.device)).reshape(
        n, c, height, width
    )


class _UnpoolIndices(torch.autograd.Function):
    """Gives every one of several equal indices the gradient at its position, as torch's own unpool does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
        return _scatter_last(y, indices, height, width)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, indices, ctx.height, ctx.width = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return max_unpool2d_indices_backward(grad, ctx.saved_tensors[0]), None, None, None

    @staticmethod
    def jvp(ctx, y_tangent: Tensor, *others: object) -> Tensor:
        return _scatter_last(y_tangent, ctx.saved_tensors[0], ctx.height, ctx.width)


def max_unpool2d_indices(y: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
    """y, indices int64 [N, C, h, w] (flat positions in a plane) -> [N, C, height, width].

    Of equal indices the last counts.
    """
    _check_indices(indices, height * width)
    return _UnpoolIndices.apply(y, indices, height, width)


def max_unpool2d_indices_backward(grad: Tensor, indices: Tensor) -> Tensor:
    """grad [N, C, H, W], indices int64 [N, C, h, w] -> grad read at the indices, [N, C, h, w]."""
    _check_indices(indices, grad.shape[-2] * grad.shape[-1])
    return grad.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)


def _check_indices(indices: Tensor, size: int) -> None:
    if not readable(indices):
        return
    bad = (indices < 0) | (indices >= size)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise RuntimeError(
            f"indices: expected positions 0..{size - 1} in the unpooled plane, "
            f"got {int(indices[tuple(where)])} at {where}"
        )
