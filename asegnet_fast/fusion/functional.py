"""What `fuse` puts in place of torch's pooling functions: their arguments, their results, int64 indices included.

Each stands for one of torch's functions, so that `unfuse` can put that one back. Under torch.jit.trace they are
torch's: a trace holds sizes as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from asegnet_fast.fusion.indices import PoolIndices, may_defer
from asegnet_fast.nn import functional
from asegnet_fast.nn.functional import IntOrPair
from asegnet_fast.ops._checks import FLOATS
from asegnet_fast.ops.max_pool2x2 import op


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool2d_with_indices`; indices of the fused path are `PoolIndices` where they may be."""
    if torch.jit.is_tracing():
        return F.max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    index_format = "code" if may_defer(input) else "torch"
    y, positions = functional.max_pool2d_with_indices(
        input, kernel_size, stride, padding, dilation, ceil_mode, index_format=index_format
    )
    if index_format == "code" and positions.dtype == torch.uint8:
        positions = PoolIndices.of(positions, input.shape)
    return y, positions


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool2d`."""
    if return_indices:
        return max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    if torch.jit.is_tracing():
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    return functional.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def torch_max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = (),
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`torch.max_pool2d`."""
    return max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """`torch.nn.functional.max_unpool2d`: by codes where that is the same, else by the indices themselves."""
    if torch.jit.is_tracing() or not functional.is_2x2(kernel_size, stride, padding, 1):
        return F.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)
    if not torch.compiler.is_compiling() and isinstance(indices, PoolIndices):
        code = None
        if isinstance(input, Tensor) and input.dtype in FLOATS and input.dim() in (3, 4):
            sides = functional.unpooled_sides(input.shape[-2:], (2, 2), (2, 2), (0, 0), output_size)
            code = indices.code_for(input.shape, sides)
        if code is not None:
            return op.max_unpool2x2(input, code, sides)
        indices = indices.plain()
    return functional.unpool_by_indices(input, indices, kernel_size, stride, padding, output_size)


#: What stands for what.
REPLACEMENTS = {
    F.max_pool2d: max_pool2d,
    F.max_pool2d_with_indices: max_pool2d_with_indices,
    F.max_unpool2d: max_unpool2d,
    torch.max_pool2d: torch_max_pool2d,
}
ORIGINALS = {ours: theirs for theirs, ours in REPLACEMENTS.items()}
