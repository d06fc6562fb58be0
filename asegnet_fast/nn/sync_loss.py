"""A region loss of the images of several processes together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from asegnet_fast.nn.losses import CrossEntropyLoss, _RegionLoss
from asegnet_fast.ops._checks import wrong_type, wrong_value
from asegnet_fast.ops.tversky import op


class SyncLoss(nn.Module):
    """A loss of `asegnet_fast.nn` over the images of all processes: what one process would get from the whole batch.

    Only sums are exchanged, a few numbers a class: with `reduce_over="batch"` and for cross-entropy the region sums,
    else each process's sum of its images' losses and their number. Parts of the batch may differ in size, or be
    empty. Every process returns the same loss.

    The gradient is that of the sum of what all processes return, so that it is right after
    `torch.nn.parallel.DistributedDataParallel` has averaged it over them. Where torch.distributed is not initialised or
    has one process, this is the loss itself.

    Args:
        loss: `DiceLoss`, `GeneralizedDiceLoss`, `TverskyLoss`, `FocalTverskyLoss`, or `CrossEntropyLoss` with
            reduction "mean" and no label smoothing.
        process_group: the processes; None: all of them. All call forward, and backward, the same number of times.

    Shape: logits [n, C, *spatial] and target [n, *spatial], this process's images -> scalar.

    Raises:
        TypeError, ValueError: another loss, or a cross-entropy of another kind.

    Equivalent to: ``loss(logits, target)`` on all processes' images concatenated.
    """

    def __init__(self, loss: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        if not isinstance(loss, (_RegionLoss, CrossEntropyLoss)):
            raise wrong_type("loss", "a loss module of asegnet_fast.nn", loss)
        if isinstance(loss, CrossEntropyLoss) and not loss.has_sums():
            raise wrong_value("loss", 'a CrossEntropyLoss of reduction "mean", no label smoothing', loss)
        self.loss = loss
        self.process_group = process_group

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        group = self.process_group
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
            return self.loss(logits, target)
        if getattr(self.loss, "reduce_over", "batch") == "image":
            loss = self.loss(logits, target)
            images = loss.new_tensor(float(logits.shape[0]))
            total, count = _all_reduce(torch.stack([loss * images, images]), group).unbind()
            return total / count.clamp(min=1)
        sums = op.region_sums(logits, target, self.loss.ignore_index)
        pooled = torch.stack([row.sum(0, keepdim=True) for row in sums])
        return self.loss.of_sums(op.RegionSums(*_all_reduce(pooled, group).unbind()))


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; so is the gradient, because every process's loss depends on this process's term."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.group), None


_all_reduce = _AllReduce.apply
