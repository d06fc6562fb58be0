"""SegNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from asegnet_fast.models.blocks import (
    check_input,
    choose_layout,
    growth_of,
    make_decoders,
    make_encoders,
    positive,
)
from asegnet_fast.nn import MaxPool2d, MaxUnpool2d


class SegNet(nn.Module):
    """SegNet: encoders that pool and keep the positions of the maxima, decoders that unpool with them.

    Encoder k is `convs[k]` times (3x3 convolution without bias, batch normalisation, ReLU), then a 2x2 max-pool.
    Decoder k unpools to encoder k's size with its positions, then has as many convolutions, the last of them
    to encoder k-1's channels; decoder 0's last one makes the logits.

    With 1 input channel, 2 classes and `final_relu=True` (batch normalisation after every convolution, the last
    one included) "vgg16" has 29,435,076 parameters and "matlab64" 667,716; with `final_relu=False` 2 fewer
    (the last convolution has a bias for each class instead of a scale and an offset).

    With `block="dense"` a section's convolutions make `growth` channels each and take all maps before them side by
    side; a 1x1 convolution with batch normalisation and ReLU brings these to the section's width, and that of decoder
    0 makes the logits (`blocks.DenseSection`). At growth 16, 1 input channel, 2 classes and `final_relu=True`,
    "vgg16" then has 2,051,684 parameters and "matlab64" 242,468.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the logits; 1 for the sigmoid form of the losses.
        preset: "vgg16" (64-128-256-512-512 channels, 2-2-3-3-3 convolutions) or "matlab64" (64 channels and
            2 convolutions in each of 5 sections).
        widths: channels of each encoder section, finest first, instead of the preset's; any depth from 1.
        convs: convolutions in each section, as many entries as `widths`, instead of the preset's; in a dense one
            without the 1x1 convolution.
        decoder_relu: False leaves out the decoders' ReLU.
        final_relu: batch normalisation and ReLU on the logits, as MATLAB's segnetLayers has; else neither.
        block: "plain" or "dense".
        growth: channels that each convolution of a dense section adds.

    Weights start as He normal (`blocks.ConvBNReLU`), biases at 0.

    Shape: x [N, in_channels, H, W], H and W at least 2**depth, odd included -> logits [N, num_classes, H, W].
        Moved to channels_last (`.to(memory_format=torch.channels_last)`), it keeps that format throughout.

    Raises:
        TypeError, ValueError: for arguments or an input of another kind or size.

    Source: Badrinarayanan et al. 2017; Budak et al. 2021; dense sections: Huang et al. 2017.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        preset: str = "vgg16",
        widths: Sequence[int] | None = None,
        convs: Sequence[int] | None = None,
        decoder_relu: bool = True,
        final_relu: bool = False,
        block: str = "plain",
        growth: int = 16,
    ) -> None:
        super().__init__()
        layout = choose_layout(preset, widths, convs)
        added = growth_of(block, growth)
        self.encoders = make_encoders(positive("in_channels", in_channels), layout, added)
        self.decoders = make_decoders(
            positive("num_classes", num_classes), layout, 1, decoder_relu, final_relu, added
        )
        self.pool = MaxPool2d(2, return_indices=True)
        self.unpool = MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.encoders)
        codes, sizes = [], []
        for encoder in self.encoders:
            sizes.append(x.shape[-2:])
            x, code = encoder(x, self.pool)
            codes.append(code)
        for decoder in reversed(self.decoders):
            x = decoder(self.unpool(x, codes.pop(), sizes.pop()))
        return x
