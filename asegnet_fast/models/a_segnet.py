"""A-SegNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asegnet_fast.models.blocks import (
    check_input,
    choose_layout,
    growth_of,
    make_decoders,
    make_encoders,
    positive,
)
from asegnet_fast.nn import AttentionGate, MaxPool2d, MaxUnpool2d
from asegnet_fast.ops._checks import check_choice

#: How a decoder takes the unpooled map and the gated skip connection.
JOINS = ("concat", "add")


class ASegNet(nn.Module):
    """SegNet with an attention gate on every skip connection.

    Gate k weighs x_k, encoder k's last activation before pooling, by g_k, what decoder k is about to unpool: the
    output of decoder k+1, or the pooled bottleneck at the coarsest level. Decoder k's convolutions take the unpooled
    g_k and the gated x_k together. All else is as in `SegNet`, and the gates start as `AttentionGate` says.

    Args:
        in_channels, num_classes, preset, widths, convs, decoder_relu, final_relu, block, growth: as `SegNet`.
        join: "concat" ([unpooled, gated] side by side) or "add" (their sum).
        gate_mode: "additive" or "multiplicative", as `asegnet_fast.nn.AttentionGate`.
        gate_upsample: "bilinear" or "nearest", how a gate brings g_k to x_k's size.
        gate_channels: channels inside every gate; None: half of x_k's.

    Shape: x [N, in_channels, H, W], H and W at least 2**depth, odd included -> logits [N, num_classes, H, W].
        Moved to channels_last (`.to(memory_format=torch.channels_last)`), it keeps that format throughout.

    Raises:
        TypeError, ValueError: for arguments or an input of another kind or size.

    Source: Budak et al. 2021, Eq. 1 and 2; dense sections with gates are what it names as future work.
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
        join: str = "concat",
        gate_mode: str = "additive",
        gate_upsample: str = "bilinear",
        gate_channels: int | None = None,
        block: str = "plain",
        growth: int = 16,
    ) -> None:
        super().__init__()
        layout = choose_layout(preset, widths, convs)
        check_choice("join", join, JOINS)
        if gate_channels is not None:
            positive("gate_channels", gate_channels)
        self.join = join
        added = growth_of(block, growth)
        self.encoders = make_encoders(positive("in_channels", in_channels), layout, added)
        self.gates = nn.ModuleList(
            AttentionGate(width, width, gate_channels, mode=gate_mode, upsample=gate_upsample)
            for width in layout.widths
        )
        self.decoders = make_decoders(
            positive("num_classes", num_classes),
            layout,
            2 if join == "concat" else 1,
            decoder_relu,
            final_relu,
            added,
        )
        self.pool = MaxPool2d(2, return_indices=True)
        self.unpool = MaxUnpool2d(2)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The logits, and with `return_attention` also every gate's coefficients in 0..1.

        Args:
            x: [N, in_channels, H, W].
            return_attention: whether to return (logits, alphas); alphas[k] is [N, 1, H_k, W_k] at encoder k's size,
                finest first, differentiable.
        """
        check_input(x, self.encoders)
        codes, skips, alphas = [], [], []
        for encoder in self.encoders:
            skip, x, code = encoder(x, self.pool, return_full=True)
            skips.append(skip)
            codes.append(code)
        for gate, decoder in zip(reversed(self.gates), reversed(self.decoders), strict=True):
            x, alpha = self._join(gate, skips.pop(), x, codes.pop())
            x = decoder(x)
            alphas.insert(0, alpha)
        return (x, alphas) if return_attention else x

    def _join(self, gate: AttentionGate, x: Tensor, g: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """What a decoder's convolutions take, and the gate's coefficients."""
        unpooled = self.unpool(g, code, x.shape[-2:])
        gated, alpha = gate(x, g, return_alpha=True)
        joined = torch.cat((unpooled, gated), 1) if self.join == "concat" else unpooled + gated
        return joined, alpha
