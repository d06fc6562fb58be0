"""The classes that `fuse` gives to torch's modules: no state of their own, found by pickle under their names.

A fused module is the same object with another class, so names, parameters, buffers, hooks and every reference to it
stay; `unfuse` gives the class back.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from asegnet_fast.fusion import functional


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, fused where kernel and stride are 2; int64 indices, made when somebody looks."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxUnpool2d(nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d`, by codes where its indices are a fused pool's and lead back to the size it pooled."""

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return functional.max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


#: The class that a module of exactly that class may get.
FUSED = {nn.MaxPool2d: MaxPool2d, nn.MaxUnpool2d: MaxUnpool2d}
STOCK = {fused: stock for stock, fused in FUSED.items()}
