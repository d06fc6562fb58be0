"""The attention gate as a module."""

from __future__ import annotations

from torch import Tensor, nn

from asegnet_fast.ops._checks import check_choice, wrong_type, wrong_value
from asegnet_fast.ops.attention_gate.op import MODES, UPSAMPLES, attention_gate


def _check_channels(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an int", value)
    if value < 1:
        raise wrong_value(name, "at least 1", value)


class AttentionGate(nn.Module):
    """Scale each pixel of a skip connection by how much a coarser map attends to it; see `attention_gate`.

    Args:
        in_channels: Cx, channels of x.
        gating_channels: Cg, channels of g.
        inter_channels: F, channels in which the two are compared; None: max(1, Cx // 2), as Oktay et al. 2018.
        mode: "additive" or "multiplicative".
        upsample: how g reaches x's size, "bilinear" (align_corners=False; trilinear for volumes) or "nearest".
        spatial_dims: 2 for maps, 3 for volumes, whose weights have one axis more.

    Parameters: `w_x.weight` [F, Cx, 1, 1], `w_g.weight` [F, Cg, 1, 1], `w_g.bias` [F], `psi.weight` [1, F, 1, 1] and
    `psi.bias` [1], those of three `torch.nn.Conv2d(kernel_size=1)` (w_x without bias; Conv3d for volumes),
    initialised by them: uniform in +-1 / sqrt(input channels).

    Shape: x [N, Cx, (D,) H, W], g [N, Cg, (Dg,) Hg, Wg] of x's size or coarser -> as x; with `return_alpha`, also
    [N, 1, (D,) H, W].

    Raises:
        TypeError: a channel count is not an int. ValueError: it is below 1, or mode or upsample is another word.

    Equivalent to::

        up = F.interpolate(w_g(g), size=x.shape[-2:], mode="bilinear")
        out = psi(F.relu(w_x(x) + up)).sigmoid() * x

    Source: Budak et al. 2021, Eq. 1 and 2.
    """

    def __init__(
        self,
        in_channels: int,
        gating_channels: int,
        inter_channels: int | None = None,
        mode: str = "additive",
        upsample: str = "bilinear",
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        _check_channels("in_channels", in_channels)
        _check_channels("gating_channels", gating_channels)
        if inter_channels is None:
            inter_channels = max(1, in_channels // 2)
        _check_channels("inter_channels", inter_channels)
        check_choice("mode", mode, MODES)
        check_choice("upsample", upsample, UPSAMPLES)
        check_choice("spatial_dims", spatial_dims, (2, 3))
        self.mode = mode
        self.upsample = upsample
        # They hold the parameters; the fused op reads them, and their own forward is never called.
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.w_x = convolution(in_channels, inter_channels, 1, bias=False)
        self.w_g = convolution(gating_channels, inter_channels, 1)
        self.psi = convolution(inter_channels, 1, 1)

    def forward(self, x: Tensor, g: Tensor, return_alpha: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        out, alpha = attention_gate(
            x,
            g,
            self.w_x.weight,
            self.w_g.weight,
            self.w_g.bias,
            self.psi.weight,
            self.psi.bias,
            self.mode,
            self.upsample,
        )
        return (out, alpha) if return_alpha else out

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, upsample={self.upsample!r}"
