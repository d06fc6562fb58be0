"""Drop-in 3-D max-pool and unpool, fused where kernel and stride are 2; positions are uint8 codes 0..7 there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asegnet_fast.nn.functional import as_tuple, is_float_map
from asegnet_fast.ops._checks import FLOATS
from asegnet_fast.ops.max_pool2x2x2 import op

IntOrTriple = int | Sequence[int]


def _is_fused(
    kernel_size: IntOrTriple, stride: IntOrTriple | None, padding: IntOrTriple, dilation: IntOrTriple
) -> bool:
    kernel = as_tuple(kernel_size, 3)
    return (
        kernel == (2, 2, 2)
        and as_tuple(stride, 3, kernel) == (2, 2, 2)
        and as_tuple(padding, 3) == (0, 0, 0)
        and as_tuple(dilation, 3) == (1, 1, 1)
    )


def max_pool3d(
    input: Tensor,
    kernel_size: IntOrTriple,
    stride: IntOrTriple | None = None,
    padding: IntOrTriple = 0,
    dilation: IntOrTriple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Max-pool of [N, C, D, H, W] or [C, D, H, W]; arguments as `torch.nn.functional.max_pool3d`.

    Kernel 2, stride 2, no padding, no dilation on a float map runs fused, and the positions are then uint8 codes
    0..7; all else is torch's own path with int64 indices.

    Equivalent to: ``torch.nn.functional.max_pool3d(...)``, with codes for indices.
    """
    if not (_is_fused(kernel_size, stride, padding, dilation) and is_float_map(input, 3, ceil_mode)):
        return F.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    y, code = op.max_pool2x2x2(input, bool(ceil_mode))
    return (y, code) if return_indices else y


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrTriple,
    stride: IntOrTriple | None = None,
    padding: IntOrTriple = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undo a max-pool; arguments as `torch.nn.functional.max_unpool3d`.

    Args:
        input: [N, C, d, h, w] or [C, d, h, w].
        indices: uint8 codes of a fused pool, or int64 indices of any pool, which take torch's own path.
        output_size: None or a size whose last three entries count.

    Raises:
        TypeError, ValueError: output_size does not end in D, H, W, or is out of range; codes for another pool.
        RuntimeError: a code outside the map (on the CPU).

    Equivalent to: ``torch.nn.functional.max_unpool3d(...)`` for indices; for codes the map is taken to be of the
    size that was pooled.
    """
    tensors = isinstance(input, Tensor) and isinstance(indices, Tensor)
    if not tensors or indices.dtype != torch.uint8 or input.dtype not in FLOATS:
        return F.max_unpool3d(input, indices, kernel_size, stride, padding, output_size)
    if not _is_fused(kernel_size, stride, padding, 1):
        raise ValueError(
            "indices: expected int64 indices for kernel_size, stride, padding = "
            f"{kernel_size}, {stride}, {padding}, got uint8 codes, which only a 2x2x2 pool with stride 2 makes"
        )
    return op.max_unpool2x2x2(input, indices, output_size)


class MaxPool3d(nn.MaxPool3d):
    """`torch.nn.MaxPool3d`, fused for kernel 2, stride 2 (or None), padding 0, dilation 1.

    Args: as torch's. With return_indices the fused path returns uint8 codes 0..7.

    Shape: [N, C, D, H, W] or [C, D, H, W] -> [..., d, h, w], as torch's.

    Equivalent to: ``torch.nn.MaxPool3d(...)``.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxUnpool3d(nn.MaxUnpool3d):
    """`torch.nn.MaxUnpool3d` that takes uint8 codes and int64 indices.

    Args: as torch's.

    Shape: input and indices [N, C, d, h, w] or [C, d, h, w] -> [..., D, H, W].

    Equivalent to: ``torch.nn.MaxUnpool3d(...)``; with codes deterministic, and positions are checked on the CPU.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)
