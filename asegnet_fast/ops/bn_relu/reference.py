"""Batch normalisation, ReLU and 2x2 max-pool in plain PyTorch: the definition the kernels are tested against.

`plain` and `plain_max_pool2x2` are what a user would write. The functions named as the ops are the same without
side effects: they return the statistics instead of updating the running ones, and gradients are functions of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def plain(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return F.relu(y) if relu else y


def pool_with_codes(y: Tensor) -> tuple[Tensor, Tensor]:
    """y [N, C, H, W] -> (maxima [N, C, H // 2, W // 2], their positions 2*dy + dx as uint8)."""
    pooled, index = F.max_pool2d(y, 2, return_indices=True)
    row = index.div(y.shape[-1], rounding_mode="floor")
    # No remainder by the width: the ONNX exporter takes only a constant there.
    code = row % 2 * 2 + (index - row * y.shape[-1]) % 2
    return pooled, code.to(torch.uint8)


def plain_max_pool2x2(x: Tensor, *options: object) -> tuple[Tensor, Tensor, Tensor]:
    """`plain`, and its pool: (y, pooled, code)."""
    y = plain(x, *options)
    return y, *pool_with_codes(y)


# ---- without side effects -------------------------------------------------------------------------------


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float32, or float64 for float64 maps."""
    return torch.promote_types(dtype, torch.float32)


def _per_channel(v: Tensor) -> Tensor:
    return v[:, None, None]


def statistics(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: of the batch in training, else the running ones."""
    dtype = sums_dtype(x.dtype)
    if not training:
        return running_mean.to(dtype, copy=True), running_var.to(dtype, copy=True)
    if x.numel() == 0:
        zeros = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
        return zeros, torch.ones_like(zeros)
    var, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
    return mean, var


def _normalised(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x.to(mean.dtype) - _per_channel(mean)) * _per_channel((var + eps).rsqrt())


def _apply(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Before the ReLU, in the dtype of the statistics."""
    y = _normalised(x, mean, var, eps)
    y = y if weight is None else y * _per_channel(weight.to(y.dtype))
    return y if bias is None else y + _per_channel(bias.to(y.dtype))


def bn_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, biased variance)."""
    mean, var = statistics(x, running_mean, running_var, training)
    y = _apply(x, weight, bias, mean, var, eps).to(x.dtype)
    return F.relu(y) if relu else y, mean, var


def bn_relu_max_pool2x2(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    full: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, or nothing [0] without `full`; pooled; code; mean; biased variance)."""
    y, mean, var = bn_relu(x, weight, bias, running_mean, running_var, training, eps, relu)
    return y if full else y.new_empty(0), *pool_with_codes(y), mean, var


def bn_relu_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias). In training the statistics are functions of x here, for a second derivative."""
    if training:
        mean, var = statistics(x, None, None, True)
    g = dy.to(mean.dtype)
    if relu:  # NaN lets the gradient pass, as in torch
        g = torch.where(_apply(x, weight, bias, mean, var, eps) <= 0, 0.0, g)
    normalised = _normalised(x, mean, var, eps)
    dbias, dweight = g.sum((0, 2, 3)), (g * normalised).sum((0, 2, 3))
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight.to(scale.dtype)
    if training and x.numel():
        count = x.numel() // x.shape[1]
        g = g - _per_channel(dbias / count) - normalised * _per_channel(dweight / count)
    return (_per_channel(scale) * g).to(x.dtype), dweight, dbias


def bn_relu_max_pool2x2_backward(
    dpooled: Tensor,
    dy: Tensor | None,
    code: Tensor,
    x: Tensor,
    *others: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `bn_relu_backward` with the pool's gradient put at its codes' positions; a code above 3 has none."""
    h, w = code.shape[-2:]
    full = torch.zeros(x.shape, dtype=sums_dtype(x.dtype), device=x.device)
    full = full if dy is None else full + dy
    for position in range(4):
        window = full[:, :, position >> 1 : 2 * h : 2, (position & 1) : 2 * w : 2]
        window += torch.where(code == position, dpooled.to(full.dtype), 0.0)
    return bn_relu_backward(full, x, *others)
