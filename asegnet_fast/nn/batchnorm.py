"""Batch normalisation with the ReLU, and where wanted the 2x2 max-pool, that follows it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from asegnet_fast.ops.bn_relu import op, synchronised


def begin(module: nn.BatchNorm2d, input: Tensor, relu: bool) -> tuple:
    """Check the input and count the batch, as `torch.nn.BatchNorm2d` does; the op's options from running_mean on."""
    module._check_input_dim(input)
    momentum = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # the average over all batches
            momentum = 1.0 / float(module.num_batches_tracked)
    has_running = module.running_mean is not None or module.running_var is not None
    keeps = has_running and (not module.training or module.track_running_stats)
    return (
        module.running_mean if keeps else None,
        module.running_var if keeps else None,
        module.weight,
        module.bias,
        module.training or not has_running,
        momentum,
        module.eps,
        relu,
    )


def finish(
    input: Tensor, options: tuple, pool: bool = False, return_full: bool = False
) -> Tensor | tuple[Tensor, ...]:
    """The op with the options from `begin`."""
    if pool:
        return op.bn_relu_max_pool2x2(input, *options, return_full=return_full)
    return op.bn_relu(input, *options)


class BatchNormReLU2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` and a ReLU in one op.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as torch's.
        relu: False leaves the ReLU out.
        others: what later versions of torch have added (`bias`).

    Parameters, buffers and state-dict keys are those of `torch.nn.BatchNorm2d`. For statistics over several processes
    see `SyncBatchNormReLU2d`; `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would lose the ReLU.

    Shape: [N, C, H, W] -> the same; with `pool`, (pooled, code) [N, C, H // 2, W // 2] as from
        `asegnet_fast.max_pool2x2`, and with `return_full` also the map before: (y, pooled, code).

    Equivalent to: ``F.relu(torch.nn.BatchNorm2d(...)(x))``.

    Source: Ioffe and Szegedy 2015.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        relu: bool = True,
        **others: bool,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **others)
        self.relu = relu

    def forward(
        self, input: Tensor, pool: bool = False, return_full: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        options = begin(self, input, self.relu)
        return self._apply_op(input, options, pool, return_full)

    def _apply_op(
        self, input: Tensor, options: tuple, pool: bool, return_full: bool
    ) -> Tensor | tuple[Tensor, ...]:
        """The op with its options from the running mean on."""
        return finish(input, options, pool, return_full)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"


class SyncBatchNormReLU2d(BatchNormReLU2d):
    """`BatchNormReLU2d` whose statistics in training are those of the images of all processes together.

    Unlike `torch.nn.SyncBatchNorm` it works on the CPU (gloo) too. In evaluation, and where torch.distributed is not
    initialised or has one process, it is `BatchNormReLU2d`. Parts of the batch may differ in size, or be empty.
    Gradients are right after `torch.nn.parallel.DistributedDataParallel` has averaged them. No second derivative.

    Args:
        process_group: the processes; None: all of them.
        others: as `BatchNormReLU2d`.

    Equivalent to: `BatchNormReLU2d` on the whole batch in one process.

    Source: Ioffe and Szegedy 2015; `torch.nn.SyncBatchNorm`.
    """

    def __init__(
        self, *args: object, process_group: dist.ProcessGroup | None = None, **others: object
    ) -> None:
        super().__init__(*args, **others)
        self.process_group = process_group

    def _apply_op(
        self, input: Tensor, options: tuple, pool: bool, return_full: bool
    ) -> Tensor | tuple[Tensor, ...]:
        *tensors, training, momentum, eps, relu = options
        alone = (
            not dist.is_available()
            or not dist.is_initialized()
            or dist.get_world_size(self.process_group) == 1
        )
        if not training or alone or not self.training:
            return super()._apply_op(input, options, pool, return_full)
        return synchronised.bn_relu(
            input, *tensors, momentum, eps, relu, pool, return_full, self.process_group
        )

    @classmethod
    def convert_sync_batchnorm(
        cls, module: nn.Module, process_group: dist.ProcessGroup | None = None
    ) -> nn.Module:
        """Turn every `BatchNormReLU2d` in a network into this class, with its parameters, buffers and options.

        Args:
            module: a network, changed in place, or a `BatchNormReLU2d`. Other batch normalisations stay; torch's
                function of this name converts those.
            process_group: the processes; None: all of them.

        Returns:
            The network, or what replaces it.
        """
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        if not isinstance(module, BatchNormReLU2d):
            return module
        # The same object under another class keeps everything: parameters that an optimiser holds, hooks, dtypes.
        module.__class__ = cls
        module.process_group = process_group
        return module
