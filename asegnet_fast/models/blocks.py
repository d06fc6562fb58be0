"""What both networks are made of: sections of convolutions, their layout, the check of the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asegnet_fast.nn import BatchNormReLU2d, MaxPool2d
from asegnet_fast.ops._checks import (
    check_choice,
    check_float,
    check_same,
    check_tensor,
    wrong_type,
    wrong_value,
)


class Layout(NamedTuple):
    """Channels and number of convolutions of each encoder section, from the finest to the coarsest."""

    widths: tuple[int, ...]
    convs: tuple[int, ...]


#: "vgg16": the thirteen convolutions of VGG-16; "matlab64": what MATLAB's segnetLayers makes at depth 5.
PRESETS = {
    "vgg16": Layout(widths=(64, 128, 256, 512, 512), convs=(2, 2, 3, 3, 3)),
    "matlab64": Layout(widths=(64,) * 5, convs=(2,) * 5),
}

#: How the convolutions of a section follow each other.
BLOCKS = ("plain", "dense")


def positive(name: str, value: object) -> int:
    """`value`, if it is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if value < 1:
        raise wrong_value(name, "an integer of at least 1", value)
    return value


def choose_layout(preset: str, widths: Sequence[int] | None, convs: Sequence[int] | None) -> Layout:
    """The preset's layout, with `widths` and `convs` in its place where they are given."""
    check_choice("preset", preset, PRESETS)
    layout = PRESETS[preset]
    widths = layout.widths if widths is None else _one_per_section("widths", widths)
    convs = layout.convs if convs is None else _one_per_section("convs", convs)
    if len(widths) != len(convs):
        raise wrong_value(
            "convs",
            f"as many entries as widths has ({len(widths)}; what is not given comes from preset {preset!r})",
            convs,
        )
    return Layout(widths, convs)


def _one_per_section(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise wrong_type(name, "a sequence of integers, one for each encoder section", values)
    if len(values) == 0:
        raise wrong_value(name, "at least one entry", values)
    return tuple(positive(f"{name}[{k}]", value) for k, value in enumerate(values))


class ConvBNReLU(nn.Module):
    """A convolution that keeps the size (no bias: batch normalisation would undo it), batch normalisation, ReLU.

    Weights are drawn as He et al. 2015 have it, from a normal distribution of variance 2 / (9 in_channels), 9 being
    the kernel's pixels; batch normalisation starts as scale 1, offset 0.

    Args:
        in_channels, out_channels: channels in and out.
        relu: False leaves the ReLU out.
        kernel_size: 3 or 1.

    Shape: [N, in_channels, H, W] -> [N, out_channels, H, W]; with `pool`, its result (pooled, positions), and with
        `return_full` also the map before it: (y, pooled, positions).
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = he_normal(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        )
        self.bn = BatchNormReLU2d(out_channels, relu=relu)
        # For the day that `bn` is replaced by a batch normalisation without ReLU, as SyncBatchNorm is.
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(
        self, x: Tensor, pool: nn.Module | None = None, return_full: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        x = self.conv(x)
        fused = isinstance(self.bn, BatchNormReLU2d)
        if fused and isinstance(pool, MaxPool2d):
            return self.bn(x, pool=True, return_full=return_full)
        y = self.bn(x) if fused else self.relu(self.bn(x))
        if pool is None:
            return y
        return (y, *pool(y)) if return_full else pool(y)


class Section(nn.Sequential):
    """Convolutions one after the other, the last of which pools its result in the same pass where it is asked to.

    Shape: x [N, C, H, W] -> as the last module, a `ConvBNReLU` where there is a `pool`.
    """

    def forward(
        self, x: Tensor, pool: nn.Module | None = None, return_full: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        *blocks, last = self
        for block in blocks:
            x = self.step(x, block(x))
        return last(x) if pool is None else last(x, pool, return_full)

    @staticmethod
    def step(x: Tensor, y: Tensor) -> Tensor:
        """What follows a block that took `x` and made `y`."""
        return y


class DenseSection(Section):
    """Convolutions that each take all maps before them side by side; a 1x1 convolution brings these to one width.

    Each map is normalised once, after its convolution, where BatchNorm and ReLU run as one op; Huang et al. 2017
    normalise the joined maps before each convolution.

    Source: Huang et al. 2017; Jegou et al. 2017 for segmentation.
    """

    @staticmethod
    def step(x: Tensor, y: Tensor) -> Tensor:
        """[x, y]."""
        if x.shape[1] == 1 and not y.is_contiguous():
            # The strides of one channel do not tell its format, and the joined maps would leave channels_last.
            x = x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
        return torch.cat((x, y), 1)


def he_normal(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw a convolution's weights from He's normal distribution (fan in); its bias starts at 0."""
    # On the meta device there is nothing to draw, and torch would import its compiler to do it.
    if not conv.weight.is_meta:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def make_section(
    source: int, width: int, count: int, relu: bool, growth: int | None, last: Callable[[int, int], nn.Module]
) -> Section:
    """A section of an encoder or a decoder.

    Args:
        source: channels that come in.
        width: channels inside a plain section.
        count: plain: the number of convolutions, the last one included; dense: of those before the 1x1 convolution.
        relu: whether those before the last have a ReLU.
        growth: channels that each convolution of a dense section adds; None: a plain section.
        last: makes the section's last module from the channels it takes and its kernel size.
    """
    if growth is None:
        sources = (source, *(width,) * (count - 1))
        return Section(*(ConvBNReLU(s, width, relu) for s in sources[:-1]), last(sources[-1], 3))
    layers = (ConvBNReLU(source + j * growth, growth, relu) for j in range(count))
    return DenseSection(*layers, last(source + count * growth, 1))


def make_encoders(in_channels: int, layout: Layout, growth: int | None) -> nn.ModuleList:
    """Encoder k: a section of `convs[k]` convolutions that ends in `widths[k]` channels."""
    encoders = nn.ModuleList()
    for width, count in zip(*layout, strict=True):

        def last(source: int, kernel_size: int, width: int = width) -> nn.Module:
            return ConvBNReLU(source, width, kernel_size=kernel_size)

        encoders.append(make_section(in_channels, width, count, True, growth, last))
        in_channels = width
    return encoders


def make_decoders(
    num_classes: int, layout: Layout, joined: int, decoder_relu: bool, final_relu: bool, growth: int | None
) -> nn.ModuleList:
    """Decoder k: a section from `joined` maps of `widths[k]` channels to `widths[k - 1]`.

    The last convolution of decoder 0 makes the logits: with batch normalisation and ReLU if `final_relu`,
    else a plain convolution with bias.
    """
    decoders = nn.ModuleList()
    for k, (width, count) in enumerate(zip(*layout, strict=True)):

        def last(source: int, kernel_size: int, k: int = k) -> nn.Module:
            if k > 0:
                return ConvBNReLU(source, layout.widths[k - 1], decoder_relu, kernel_size)
            if final_relu:
                return ConvBNReLU(source, num_classes, kernel_size=kernel_size)
            return he_normal(nn.Conv2d(source, num_classes, kernel_size, padding=kernel_size // 2))

        decoders.append(make_section(joined * width, width, count, decoder_relu, growth, last))
    return decoders


def growth_of(block: str, growth: int) -> int | None:
    """The channels that each convolution of a dense section adds; None for plain sections."""
    check_choice("block", block, BLOCKS)
    return positive("growth", growth) if block == "dense" else None


def check_input(x: object, encoders: nn.ModuleList) -> None:
    """`x` is a float [N, in_channels, H, W] of the weights' dtype and device, whose sides can be halved enough."""
    check_tensor("x", x, (4,))
    check_float("x", x)
    conv = encoders[0][0].conv
    check_same("device", "x", x, "the weights", conv.weight)
    if not torch.is_autocast_enabled(x.device.type):
        check_same("dtype", "x", x, "the weights", conv.weight)
    if x.shape[1] != conv.in_channels:
        raise wrong_value("x", f"{conv.in_channels} channels in dimension 1", x)
    least = 2 ** len(encoders)
    if x.shape[2] < least or x.shape[3] < least:
        raise wrong_value("x", f"height and width of at least {least} (2**depth, depth {len(encoders)})", x)
