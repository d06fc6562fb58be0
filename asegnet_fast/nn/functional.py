"""`torch.nn.functional`'s pooling signatures, fused where kernel and stride are 2.

Positions come as codes (uint8) by default from these functions; `max_unpool2d` takes codes and torch's int64
indices alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from asegnet_fast.ops._checks import FLOATS, check_choice, wrong_value
from asegnet_fast.ops.max_pool2x2 import exchange, op
from asegnet_fast.ops.max_pool2x2.reference import readable

IntOrPair = int | Sequence[int]

#: How positions are returned: a byte per window, or torch's int64 index in the plane.
INDEX_FORMATS = ("code", "torch")


def as_tuple(value: IntOrPair | None, n: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """`value` once for each of n axes. torch takes None and an empty sequence as "not given"."""
    if value is None or (isinstance(value, Sequence) and len(value) == 0):
        return default
    if isinstance(value, Sequence):
        return tuple(value) * n if len(value) == 1 else tuple(value)
    return (value,) * n


def _pair(value: IntOrPair | None, default: tuple[int, int]) -> tuple[int, ...]:
    return as_tuple(value, 2, default)


def is_2x2(kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair, dilation: IntOrPair) -> bool:
    """Whether these settings are the fused pool's: kernel and stride 2, nothing else."""
    kernel = _pair(kernel_size, (0, 0))
    return (
        kernel == (2, 2)
        and _pair(stride, kernel) == (2, 2)
        and _pair(padding, (0, 0)) == (0, 0)
        and _pair(dilation, (1, 1)) == (1, 1)
    )


def is_float_map(x: object, axes: int, ceil_mode: bool) -> bool:
    """Whether the fused pool over so many spatial axes takes this input; torch's own path takes the rest, its
    complaints included."""
    if (
        not isinstance(x, Tensor)
        or x.layout != torch.strided
        or x.dtype not in FLOATS
        or x.dim() not in (axes + 1, axes + 2)
    ):
        return False
    return x.shape[-axes - 1] > 0 and min(x.shape[-axes:]) >= (1 if ceil_mode else 2)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
    index_format: str = "code",
) -> tuple[Tensor, Tensor]:
    """Max-pool with positions; arguments as `torch.nn.functional.max_pool2d_with_indices`.

    Kernel 2, stride 2, no padding, no dilation on a float map runs fused; all else is torch's own path.

    Args:
        index_format: "code": the fused path returns uint8 codes 0..3 (torch's own path returns int64 indices);
            "torch": int64 indices always.

    Returns:
        (pooled, positions), both [..., h, w].

    Equivalent to: ``torch.nn.functional.max_pool2d(..., return_indices=True)``.
    """
    check_choice("index_format", index_format, INDEX_FORMATS)
    if not (is_2x2(kernel_size, stride, padding, dilation) and is_float_map(input, 2, ceil_mode)):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    y, code = op.max_pool2x2(input, bool(ceil_mode))
    return y, code if index_format == "code" else exchange.codes_to_indices(code, input.shape)


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    index_format: str = "code",
) -> Tensor | tuple[Tensor, Tensor]:
    """Max-pool; arguments as `torch.nn.functional.max_pool2d`, `index_format` as `max_pool2d_with_indices`.

    Equivalent to: ``torch.nn.functional.max_pool2d(...)``.
    """
    if return_indices:
        return max_pool2d_with_indices(
            input, kernel_size, stride, padding, dilation, ceil_mode, index_format=index_format
        )
    check_choice("index_format", index_format, INDEX_FORMATS)
    if not (is_2x2(kernel_size, stride, padding, dilation) and is_float_map(input, 2, ceil_mode)):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    return op.max_pool2x2(input, bool(ceil_mode))[0]


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undo a max-pool; arguments as `torch.nn.functional.max_unpool2d`.

    Args:
        input: [N, C, h, w] or [C, h, w].
        indices: uint8 codes of a fused pool, or int64 indices of any pool; the shape of `input`.
        output_size: None or a size whose last two entries count.

    Raises:
        TypeError, ValueError: output_size does not end in H, W, or is out of range.
        RuntimeError: on the CPU, a code or index outside the map; or int64 indices that are all at most 3 although
            there are 3 windows or more in a plane: somebody has cast codes to int64.

    Equivalent to: ``torch.nn.functional.max_unpool2d(...)`` for indices; for codes the map is taken to be of the
    size that was pooled.
    """
    if isinstance(indices, Tensor) and indices.dtype == torch.uint8 and _is_float(input):
        if not is_2x2(kernel_size, stride, padding, 1):
            raise ValueError(
                "indices: expected int64 indices for kernel_size, stride, padding = "
                f"{kernel_size}, {stride}, {padding}, got uint8 codes, which only a 2x2 pool with stride 2 makes"
            )
        return op.max_unpool2x2(input, indices, output_size)
    return unpool_by_indices(
        input, indices, kernel_size, stride, padding, output_size, refuse_cast_codes=True
    )


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype in FLOATS


def unpool_by_indices(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    output_size: Sequence[int] | None = None,
    *,
    refuse_cast_codes: bool = False,
) -> Tensor:
    """`max_unpool2d` for int64 indices alone; `refuse_cast_codes`: complain of those that look like cast codes."""
    kernel = _pair(kernel_size, (0, 0))
    strides, paddings = _pair(stride, kernel), _pair(padding, (0, 0))
    if (
        not (_is_float(input) and isinstance(indices, Tensor) and indices.dtype == torch.int64)
        or input.shape != indices.shape
        or input.dim() not in (3, 4)
        or not len(kernel) == len(strides) == len(paddings) == 2
        or 0 in input.shape
    ):
        return F.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)
    size = unpooled_sides(input.shape[-2:], kernel, strides, paddings, output_size)
    if refuse_cast_codes and is_2x2(kernel_size, stride, padding, 1):
        _refuse_cast_codes(indices)
    return op.max_unpool2d_indices(input, indices, size)


def unpooled_sides(
    pooled: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_size: Sequence[int] | None,
) -> tuple[int, ...]:
    # torch's rule: what the pool's settings give, or a size less than one stride away.
    sides = tuple(
        (p - 1) * s - 2 * pad + k for p, k, s, pad in zip(pooled, kernel, stride, padding, strict=True)
    )
    if output_size is None:
        return sides
    wanted = op.last_two(output_size)
    for side, s, got in zip(sides, stride, wanted, strict=True):
        if not side - s < got < side + s:
            raise wrong_value("output_size", f"H, W less than {stride} away from {sides}", tuple(output_size))
    return wanted


def _refuse_cast_codes(indices: Tensor) -> None:
    # Three windows cannot all have their maximum among the first four positions of the plane.
    if readable(indices) and indices.shape[-2] * indices.shape[-1] >= 3 and int(indices.max()) <= 3:
        raise RuntimeError(
            "indices: expected positions in the unpooled plane, got int64 values that are all 0..3, as codes cast to "
            "int64 are; pass the uint8 codes themselves, or asegnet_fast.codes_to_indices(code, input_size)"
        )
