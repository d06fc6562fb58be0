"""`bn_relu` whose statistics are those of the batches of several processes together.

Each process keeps its own part of the batch and runs the ops of one process with the common mean and variance; what is
exchanged is a few numbers a channel: mean, variance and count forward, two sums backward.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from asegnet_fast.ops import _library
from asegnet_fast.ops.bn_relu import op, reference


def common_statistics(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel of x [N, C, H, W] over all processes, and the count of values, [].

    Every process adds the same numbers in the same order, so all have the same bits. A process may hold no images.
    """
    mean, var = reference.statistics(x, None, None, True)
    count = mean.new_tensor([x.shape[0] * x.shape[2] * x.shape[3]])
    own = torch.cat([mean, var, count])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    # In float64: counts are exact, and a variance is a small difference of large numbers where means differ.
    table = torch.stack(parts).double()
    channels = x.shape[1]
    means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    return mean.to(own.dtype), var.to(own.dtype), total


class _Synchronised(torch.autograd.Function):
    """The ops with given statistics forward; backward adds what the statistics' dependence on x takes away."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, total, eps, relu, pool, full, group):
        options = (x, weight, bias, mean, var, False, eps, relu)
        if pool:
            y, pooled, code, *_ = _library.serve("bn_relu_max_pool2x2", *options, full)
        else:
            y, pooled, code = _library.serve("bn_relu", *options)[0], None, None
        ctx.save_for_backward(x, weight, bias, mean, var, total, code)
        ctx.options, ctx.group = (eps, relu), group
        ctx.set_materialize_grads(False)
        if not pool:
            return y
        ctx.mark_non_differentiable(code, *(() if full else (y,)))
        return y, pooled, code

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dpooled=None, _=None):
        x, weight, bias, mean, var, total, code = ctx.saved_tensors
        eps, relu = ctx.options
        given = (x, weight, bias, mean, var, False, eps, relu)
        if dpooled is not None:
            found = _library.serve("bn_relu_max_pool2x2_backward", dpooled, dy, code, *given)
        else:
            # Every process takes part in the exchange, whether or not its part of the loss depends on y.
            found = _library.serve("bn_relu_backward", torch.zeros_like(x) if dy is None else dy, *given)
        dx, dweight, dbias = found
        sums = torch.stack([dbias, dweight])
        dist.all_reduce(sums, group=ctx.group)
        # dx of one process in training: scale * (g - mean of g - normalised x * mean of (g * normalised x)).
        inverse = (var + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
        offset, slope = (-scale * sums / total.to(sums.dtype)).unbind(0)
        offset, slope = offset[:, None, None], (slope * inverse)[:, None, None]
        correction = torch.addcmul(offset, x.to(inverse.dtype) - mean[:, None, None], slope)
        dx = dx + correction.to(dx.dtype)
        return dx, *op.as_parameters(weight, bias, dweight, dbias), *(None,) * 8


def bn_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    pool: bool = False,
    return_full: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """`op.bn_relu` in training, or with `pool` `op.bn_relu_max_pool2x2`, over the images of all processes of a group.

    Every process of the group must call it, and its backward, the same number of times in the same order. Gradients
    are those of the sum of all processes' losses; weight's and bias's are each process's own part of it, as
    `torch.nn.parallel.DistributedDataParallel` expects them.

    Args:
        x: [n, C, H, W], this process's images, 0 or more; as for `op.bn_relu`.
        running_mean, running_var, weight, bias, momentum, eps, relu, return_full: as for the op.
        group: the processes; None: all of them.

    Returns:
        As the op. There is no second derivative.

    Raises:
        TypeError, ValueError: as the op.

    Equivalent to: the op on all processes' images concatenated, of which each gets its part.

    Source: Ioffe and Szegedy 2015; `torch.nn.SyncBatchNorm`.
    """
    op.check_tensors(x, running_mean, running_var, weight, bias)
    if pool:
        op.check_sides(x)
    mean, var, total = common_statistics(x.detach(), group)
    y = _Synchronised.apply(x, weight, bias, mean, var, total, eps, relu, pool, return_full, group)
    if running_mean is not None:
        op.move_running(running_mean, running_var, momentum, mean, var, total / (total - 1).clamp(min=1))
    return y if not pool or return_full else y[1:]
