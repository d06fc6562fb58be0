"""2x2 max-pool with positions and its unpool.

A position ("code") is one byte a window, 2*dy + dx, where torch keeps an int64 index. The gradient of the pool
*is* the unpool, and the gradient of the unpool reads the codes' positions: four ops that close under autograd.
Codes that point outside the map raise on the CPU; on a GPU such a value is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asegnet_fast.ops import _library
from asegnet_fast.ops._checks import check_float, check_same, check_tensor, wrong_type, wrong_value
from asegnet_fast.ops._layout import memory_format
from asegnet_fast.ops.max_pool2x2 import reference

# ---- checks ---------------------------------------------------------------------------------------------


def _check_pool(x: Tensor, ceil_mode: bool) -> None:
    check_tensor("x", x, (3, 4))
    check_float("x", x)
    if not isinstance(ceil_mode, bool):
        raise wrong_type("ceil_mode", "a bool", ceil_mode)
    least = 1 if ceil_mode else 2
    *_, channels, height, width = x.shape
    if height < least or width < least or channels == 0:
        raise wrong_value("x", f"at least one channel and sides of at least {least}", x)


def last_two(output_size: Sequence[int]) -> tuple[int, int]:
    """(H, W) from a size that ends in them; TypeError for anything else."""
    sides = tuple(output_size)[-2:] if isinstance(output_size, Sequence) else ()
    if len(sides) != 2 or not all(isinstance(s, (int, torch.SymInt)) for s in sides):
        raise wrong_type("output_size", "a sequence of ints that ends in H, W", output_size)
    return sides


def output_sides(output_size: Sequence[int] | None, h: int, w: int) -> tuple[int, int]:
    """(H, W) from None (doubles) or a size whose last two entries count; each side 2h - 1, 2h or 2h + 1."""
    if output_size is None:
        return 2 * h, 2 * w
    sides = last_two(output_size)
    for side, pooled in zip(sides, (h, w), strict=True):
        if not 2 * pooled - 1 <= side <= 2 * pooled + 1 or side < 0:
            raise wrong_value(
                "output_size",
                f"H of {2 * h - 1} to {2 * h + 1} and W of {2 * w - 1} to {2 * w + 1}",
                tuple(output_size),
            )
    return sides


def _check_code(y: Tensor, code: Tensor) -> None:
    check_tensor("code", code)
    if code.dtype != torch.uint8:
        raise wrong_type("code", "dtype uint8 (int64 indices go to max_unpool2d_indices)", code)
    check_same("shape", "code", code, "y", y)
    check_same("device", "code", code, "y", y)


# ---- public functions -----------------------------------------------------------------------------------


def max_pool2x2(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """Max-pool with 2x2 windows and stride 2 that also returns where each maximum stood.

    Of equal elements the first counts, of NaNs the last, as in torch.

    Args:
        x: [N, C, H, W] or [C, H, W], float32, float64, bfloat16 or float16, any strides; NCHW and
            channels_last are kept.
        ceil_mode: keep the half-filled windows at the end of odd sides.

    Returns:
        (y, code), both [..., h, w] with h = H // 2 (or (H + 1) // 2): the maxima in x's dtype, and their positions
        2*dy + dx in 0..3 as uint8. Only y has a gradient.

    Raises:
        TypeError: x is not a dense float tensor, or ceil_mode no bool.
        ValueError: x is not 3-D or 4-D, has no channel, or a side shorter than 2 (1 with ceil_mode).

    Equivalent to: ``torch.nn.functional.max_pool2d(x, 2, ceil_mode=ceil_mode, return_indices=True)``, with codes
    for indices.

    Source: Badrinarayanan et al. 2017 (SegNet), section 3; Budak et al. 2021, "SegNet".
    """
    _check_pool(x, ceil_mode)
    if x.dim() == 3:
        y, code = max_pool2x2(x.unsqueeze(0), ceil_mode)
        return y.squeeze(0), code.squeeze(0)
    return _library.serve("max_pool2x2", x, ceil_mode)


def max_unpool2x2(y: Tensor, code: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """Put each value at its code's position in a map of twice the size, and zero everywhere else.

    Each output element is written once: no zero-fill and no scatter, so it is deterministic.

    Args:
        y: [N, C, h, w] or [C, h, w], any float dtype, any strides.
        code: uint8, y's shape, positions 0..3 as from `max_pool2x2`.
        output_size: (H, W), or a longer size whose last two entries count; each side 2h - 1, 2h or 2h + 1.
            None doubles.

    Returns:
        [..., H, W] in y's dtype and memory format.

    Raises:
        TypeError: y is not a dense float tensor, code is not uint8, or they are on different devices.
        ValueError: shapes differ, or output_size is out of range.
        RuntimeError: a code is above 3 or points outside the map (on the CPU).

    Equivalent to: ``torch.nn.functional.max_unpool2d(y, indices, 2, output_size=output_size)``, for codes from a map of
    that size.

    Source: Badrinarayanan et al. 2017 (SegNet), section 3; Budak et al. 2021, "SegNet".
    """
    check_tensor("y", y, (3, 4))
    check_float("y", y)
    _check_code(y, code)
    height, width = output_sides(output_size, *y.shape[-2:])
    if y.dim() == 3:
        return max_unpool2x2(y.unsqueeze(0), code.unsqueeze(0), (height, width)).squeeze(0)
    return _library.serve("max_unpool2x2", y, code, height, width)


def max_unpool2d_indices(y: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
    """Unpool with torch's int64 indices, checked and deterministic.

    Args:
        y: [N, C, h, w] or [C, h, w], any float dtype, any strides.
        indices: int64, y's shape, flat positions row * W + column in the output plane. Of equal ones the last counts.
        output_size: ends in (H, W); any size.

    Returns:
        [..., H, W] in y's dtype and memory format.

    Raises:
        TypeError: wrong kinds of tensors, dtypes or devices, or output_size does not end in H, W.
        ValueError: shapes differ, or a side is negative.
        RuntimeError: an index lies outside the plane (on the CPU).

    Equivalent to: ``torch.nn.functional.max_unpool2d``, which is non-deterministic and unchecked in backward.
    """
    check_tensor("y", y, (3, 4))
    check_float("y", y)
    check_tensor("indices", indices)
    if indices.dtype != torch.int64:
        raise wrong_type("indices", "dtype int64", indices)
    check_same("shape", "indices", indices, "y", y)
    check_same("device", "indices", indices, "y", y)
    height, width = last_two(output_size)
    if height < 0 or width < 0:
        raise wrong_value("output_size", "sides of at least 0", tuple(output_size))
    if y.dim() == 3:
        return max_unpool2d_indices(y.unsqueeze(0), indices.unsqueeze(0), (height, width)).squeeze(0)
    return _library.serve("max_unpool2d_indices", y, indices, height, width)


# ---- ops ------------------------------------------------------------------------------------------------

_TRITON = f"{__package__}.triton_kernels"
_library.define(
    "max_pool2x2",
    "(Tensor x, bool ceil_mode=False) -> (Tensor, Tensor)",
    reference.max_pool2x2,
    triton=_TRITON,
)
_unpool = _library.define(
    "max_unpool2x2",
    "(Tensor y, Tensor code, SymInt height, SymInt width) -> Tensor",
    reference.max_unpool2x2,
    triton=_TRITON,
)
_unpool_backward = _library.define(
    "max_unpool2x2_backward",
    "(Tensor grad, Tensor code) -> Tensor",
    reference.max_unpool2x2_backward,
    layout_of=1,
    listed=False,
    triton=_TRITON,
)
_unpool_indices = _library.define(
    "max_unpool2d_indices",
    "(Tensor y, Tensor indices, SymInt height, SymInt width) -> Tensor",
    reference.max_unpool2d_indices,
    triton=_TRITON,
)
_unpool_indices_backward = _library.define(
    "max_unpool2d_indices_backward",
    "(Tensor grad, Tensor indices) -> Tensor",
    reference.max_unpool2d_indices_backward,
    layout_of=1,
    listed=False,
    triton=_TRITON,
)

# ---- shapes without data --------------------------------------------------------------------------------


def _empty(like: Tensor, sides: Sequence[int], dtype: torch.dtype, layout_of: Tensor) -> Tensor:
    return torch.empty(
        (*like.shape[:2], *sides), dtype=dtype, device=like.device, memory_format=memory_format(layout_of)
    )


def _pool_fake(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    extra = 1 if ceil_mode else 0
    sides = [(s + extra) // 2 for s in x.shape[-2:]]
    return _empty(x, sides, x.dtype, x), _empty(x, sides, torch.uint8, x)


def _unpool_fake(y: Tensor, positions: Tensor, height: int, width: int) -> Tensor:
    return _empty(y, (height, width), y.dtype, y)


def _unpool_backward_fake(grad: Tensor, positions: Tensor) -> Tensor:
    return _empty(positions, positions.shape[-2:], grad.dtype, positions)


_library.register_fake("max_pool2x2", _pool_fake)
_library.register_fake("max_unpool2x2", _unpool_fake)
_library.register_fake("max_unpool2x2_backward", _unpool_backward_fake)
_library.register_fake("max_unpool2d_indices", _unpool_fake)
_library.register_fake("max_unpool2d_indices_backward", _unpool_backward_fake)

# ---- gradients ------------------------------------------------------------------------------------------


def _save_pool(ctx, inputs, output) -> None:
    ctx.sides = inputs[0].shape[-2:]
    ctx.save_for_backward(output[1])


def _pool_backward(ctx, grad_y: Tensor, grad_code: None) -> tuple[Tensor, None]:
    return _library.same(ctx, _unpool)(grad_y, ctx.saved_tensors[0], *ctx.sides), None


def _save_positions(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.sides = output.shape[-2:]


def _save_positions_and_sides(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.sides = inputs[0].shape[-2:]


# Unpool and its backward are each other's gradient, so every order of derivative exists.
for _forward, _backward in (
    (_unpool, _unpool_backward),
    (_unpool_indices, _unpool_indices_backward),
):

    def _grad_of_forward(ctx, grad: Tensor, _op=_backward) -> tuple[Tensor, None, None, None]:
        return _library.same(ctx, _op)(grad, ctx.saved_tensors[0]), None, None, None

    def _grad_of_backward(ctx, grad: Tensor, _op=_forward) -> tuple[Tensor, None]:
        return _library.same(ctx, _op)(grad, ctx.saved_tensors[0], *ctx.sides), None

    _library.register_autograd(_forward.__name__, _grad_of_forward, _save_positions)
    _library.register_autograd(_backward.__name__, _grad_of_backward, _save_positions_and_sides)

_library.register_autograd("max_pool2x2", _pool_backward, _save_pool)
