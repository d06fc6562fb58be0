"""Drop-in `MaxPool2d` and `MaxUnpool2d`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from asegnet_fast.nn import functional
from asegnet_fast.ops._checks import check_choice


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, fused for kernel 2, stride 2 (or None), padding 0, dilation 1.

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode: as torch's.
        index_format: what `return_indices=True` returns from the fused path: "code", uint8 positions 0..3
            (an eighth of the bytes), or "torch", int64 indices. Other settings return int64 indices.

    Shape: [N, C, H, W] or [C, H, W] -> [..., h, w], as torch's.

    Equivalent to: ``torch.nn.MaxPool2d(...)``.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        index_format: str = "code",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        check_choice("index_format", index_format, functional.INDEX_FORMATS)
        self.index_format = index_format

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            self.index_format,
        )


class MaxUnpool2d(nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d` that takes uint8 codes and int64 indices, whoever made them.

    Args:
        kernel_size, stride, padding: as torch's.

    Shape: input and indices [N, C, h, w] or [C, h, w] -> [..., H, W].

    Equivalent to: ``torch.nn.MaxUnpool2d(...)``; deterministic, and out-of-range positions raise on the CPU.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return functional.max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
