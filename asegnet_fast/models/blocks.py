"""What both networks are made of: sections of convolutions, their layout, the check of the input."""

from __future__ import annotations

from collections.abc import Sequence
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
    """A 3x3 convolution (padding 1, no bias: batch normalisation would undo it), batch normalisation, ReLU.

    Weights are drawn as He et al. 2015 have it, from a normal distribution of variance 2 / (9 in_channels);
    batch normalisation starts as scale 1, offset 0.

    Args:
        in_channels, out_channels: channels in and out.
        relu: False leaves the ReLU out.

    Shape: [N, in_channels, H, W] -> [N, out_channels, H, W]; with `pool`, its result (pooled, positions), and with
        `return_full` also the map before it: (y, pooled, positions).
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = he_normal(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False))
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


class Encoder(nn.Sequential):
    """Convolutions to one width, the last of which pools its result in the same pass.

    Shape: x [N, in_channels, H, W] -> as the last `ConvBNReLU`.
    """

    def forward(
        self, x: Tensor, pool: nn.Module | None = None, return_full: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        *blocks, last = self
        for block in blocks:
            x = block(x)
        return last(x, pool, return_full)


def he_normal(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw a convolution's weights from He's normal distribution (fan in); its bias starts at 0."""
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def make_encoders(in_channels: int, layout: Layout) -> nn.ModuleList:
    """Encoder k: `convs[k]` convolutions to `widths[k]` channels."""
    encoders = nn.ModuleList()
    for width, count in zip(*layout, strict=True):
        sources = (in_channels, *(width,) * (count - 1))
        encoders.append(Encoder(*(ConvBNReLU(source, width) for source in sources)))
        in_channels = width
    return encoders


def make_decoders(
    num_classes: int, layout: Layout, joined: int, decoder_relu: bool, final_relu: bool
) -> nn.ModuleList:
    """Decoder k: `convs[k]` convolutions from `joined` maps of `widths[k]` channels to `widths[k - 1]`.

    The last convolution of decoder 0 makes the logits: with batch normalisation and ReLU if `final_relu`,
    else a plain convolution with bias.
    """
    decoders = nn.ModuleList()
    for k, (width, count) in enumerate(zip(*layout, strict=True)):
        *sources, last = (joined * width, *(width,) * (count - 1))
        blocks = [ConvBNReLU(source, width, decoder_relu) for source in sources]
        if k > 0:
            blocks.append(ConvBNReLU(last, layout.widths[k - 1], decoder_relu))
        elif final_relu:
            blocks.append(ConvBNReLU(last, num_classes))
        else:
            blocks.append(he_normal(nn.Conv2d(last, num_classes, 3, padding=1)))
        decoders.append(nn.Sequential(*blocks))
    return decoders


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
