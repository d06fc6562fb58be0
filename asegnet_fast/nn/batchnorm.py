"""Batch normalisation with the ReLU, and where wanted the 2x2 max-pool, that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asegnet_fast.ops.bn_relu import op


class BatchNormReLU2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` and a ReLU in one op.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as torch's.
        relu: False leaves the ReLU out.
        others: what later versions of torch have added (`bias`).

    Parameters, buffers and state-dict keys are those of `torch.nn.BatchNorm2d`. What replaces such modules by class
    (`torch.nn.SyncBatchNorm.convert_sync_batchnorm`) knows nothing of the ReLU: it must then be added behind.

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
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        has_running = self.running_mean is not None or self.running_var is not None
        keeps = has_running and (not self.training or self.track_running_stats)
        options = (
            self.running_mean if keeps else None,
            self.running_var if keeps else None,
            self.weight,
            self.bias,
            self.training or not has_running,
            momentum,
            self.eps,
            self.relu,
        )
        if pool:
            return op.bn_relu_max_pool2x2(input, *options, return_full=return_full)
        return op.bn_relu(input, *options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"
