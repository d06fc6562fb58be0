"""2x2x2 max-pool with positions and its unpool, for [N, C, D, H, W]: `max_pool2x2` with a third axis.

A position ("code") is one byte a window, 4*dz + 2*dy + dx. The gradient of the pool *is* the unpool, and the
gradient of the unpool reads the codes' positions: three ops that close under autograd. Codes that point outside the
map raise on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asegnet_fast.ops import _library
from asegnet_fast.ops._checks import check_float, check_same, check_tensor, wrong_type, wrong_value
from asegnet_fast.ops._layout import memory_format
from asegnet_fast.ops.max_pool2x2x2 import reference

# ---- checks ---------------------------------------------------------------------------------------------


def output_sides(output_size: Sequence[int] | None, pooled: Sequence[int]) -> tuple[int, ...]:
    """(D, H, W) from None (doubles) or a size whose last three entries count; each side 2h - 1, 2h or 2h + 1."""
    if output_size is None:
        return tuple(2 * p for p in pooled)
    sides = tuple(output_size)[-3:] if isinstance(output_size, Sequence) else ()
    if len(sides) != 3 or not all(isinstance(s, (int, torch.SymInt)) for s in sides):
        raise wrong_type("output_size", "a sequence of ints that ends in D, H, W", output_size)
    if not all(2 * p - 1 <= s <= 2 * p + 1 and s >= 0 for s, p in zip(sides, pooled, strict=True)):
        raise wrong_value(
            "output_size", f"sides at most 1 away from {tuple(2 * p for p in pooled)}", tuple(output_size)
        )
    return sides


# ---- public functions -----------------------------------------------------------------------------------


def max_pool2x2x2(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """Max-pool with 2x2x2 windows and stride 2 that also returns where each maximum stood.

    Of equal elements the first counts, of NaNs the last, as in torch.

    Args:
        x: [N, C, D, H, W] or [C, D, H, W], float32, float64, bfloat16 or float16, any strides; NCDHW and
            channels_last_3d are kept.
        ceil_mode: keep the half-filled windows at the end of odd sides.

    Returns:
        (y, code), both [..., d, h, w] with d = D // 2 (or (D + 1) // 2): the maxima in x's dtype, and their positions
        4*dz + 2*dy + dx in 0..7 as uint8. Only y has a gradient.

    Raises:
        TypeError: x is not a dense float tensor, or ceil_mode no bool.
        ValueError: x is not 4-D or 5-D, has no channel, or a side shorter than 2 (1 with ceil_mode).

    Equivalent to: ``torch.nn.functional.max_pool3d(x, 2, ceil_mode=ceil_mode, return_indices=True)``, with codes
    for indices.

    Source: Badrinarayanan et al. 2017 (SegNet), section 3, with a third axis.
    """
    check_tensor("x", x, (4, 5))
    check_float("x", x)
    if not isinstance(ceil_mode, bool):
        raise wrong_type("ceil_mode", "a bool", ceil_mode)
    least = 1 if ceil_mode else 2
    if min(x.shape[-3:]) < least or x.shape[-4] == 0:
        raise wrong_value("x", f"at least one channel and sides of at least {least}", x)
    if x.dim() == 4:
        y, code = max_pool2x2x2(x.unsqueeze(0), ceil_mode)
        return y.squeeze(0), code.squeeze(0)
    return _library.serve("max_pool2x2x2", x, ceil_mode)


def max_unpool2x2x2(y: Tensor, code: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """Put each value at its code's position in a map of twice the size, and zero everywhere else.

    Each output element is written once: no zero-fill and no scatter, so it is deterministic.

    Args:
        y: [N, C, d, h, w] or [C, d, h, w], any float dtype, any strides.
        code: uint8, y's shape, positions 0..7 as from `max_pool2x2x2`.
        output_size: (D, H, W), or a longer size whose last three entries count; each side 2h - 1, 2h or 2h + 1.
            None doubles.

    Returns:
        [..., D, H, W] in y's dtype and memory format.

    Raises:
        TypeError: y is not a dense float tensor, code is not uint8, or they are on different devices.
        ValueError: shapes differ, or output_size is out of range.
        RuntimeError: a code is above 7 or points outside the map (on the CPU).

    Equivalent to: ``torch.nn.functional.max_unpool3d(y, indices, 2, output_size=output_size)``, for codes from a map of
    that size.

    Source: Badrinarayanan et al. 2017 (SegNet), section 3, with a third axis.
    """
    check_tensor("y", y, (4, 5))
    check_float("y", y)
    check_tensor("code", code)
    if code.dtype != torch.uint8:
        raise wrong_type("code", "dtype uint8", code)
    check_same("shape", "code", code, "y", y)
    check_same("device", "code", code, "y", y)
    sides = output_sides(output_size, y.shape[-3:])
    if y.dim() == 4:
        return max_unpool2x2x2(y.unsqueeze(0), code.unsqueeze(0), sides).squeeze(0)
    return _library.serve("max_unpool2x2x2", y, code, *sides)


# ---- ops ------------------------------------------------------------------------------------------------

_library.define(
    "max_pool2x2x2", "(Tensor x, bool ceil_mode=False) -> (Tensor, Tensor)", reference.max_pool2x2x2
)
_unpool = _library.define(
    "max_unpool2x2x2",
    "(Tensor y, Tensor code, SymInt depth, SymInt height, SymInt width) -> Tensor",
    reference.max_unpool2x2x2,
)
_unpool_backward = _library.define(
    "max_unpool2x2x2_backward",
    "(Tensor grad, Tensor code) -> Tensor",
    reference.max_unpool2x2x2_backward,
    layout_of=1,
    listed=False,
)

# ---- shapes without data --------------------------------------------------------------------------------


def _empty(like: Tensor, sides: Sequence[int], dtype: torch.dtype, layout_of: Tensor) -> Tensor:
    shape = (*like.shape[:2], *sides)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(layout_of))


def _pool_fake(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    sides = [(s + (1 if ceil_mode else 0)) // 2 for s in x.shape[2:]]
    return _empty(x, sides, x.dtype, x), _empty(x, sides, torch.uint8, x)


def _unpool_fake(y: Tensor, code: Tensor, *sides: int) -> Tensor:
    return _empty(y, sides, y.dtype, y)


def _unpool_backward_fake(grad: Tensor, code: Tensor) -> Tensor:
    return _empty(code, code.shape[2:], grad.dtype, code)


_library.register_fake("max_pool2x2x2", _pool_fake)
_library.register_fake("max_unpool2x2x2", _unpool_fake)
_library.register_fake("max_unpool2x2x2_backward", _unpool_backward_fake)

# ---- gradients: unpool and its backward are each other's, so every order of derivative exists ---------------


def _save_pool(ctx, inputs, output) -> None:
    ctx.sides = inputs[0].shape[2:]
    ctx.save_for_backward(output[1])


def _grad_of_pool(ctx, grad_y: Tensor, grad_code: None) -> tuple[Tensor, None]:
    return _unpool(grad_y, ctx.saved_tensors[0], *ctx.sides), None


def _save_unpool(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _grad_of_unpool(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _unpool_backward(grad, ctx.saved_tensors[0]), None, None, None, None


def _grad_of_unpool_backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
    return _unpool(grad, ctx.saved_tensors[0], *ctx.sides), None


def _save_unpool_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.sides = inputs[0].shape[2:]


_library.register_autograd("max_pool2x2x2", _grad_of_pool, _save_pool)
_library.register_autograd("max_unpool2x2x2", _grad_of_unpool, _save_unpool)
_library.register_autograd("max_unpool2x2x2_backward", _grad_of_unpool_backward, _save_unpool_backward)
