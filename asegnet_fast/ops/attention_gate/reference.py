"""The attention gate in plain PyTorch: the definition the kernels are tested against (Budak et al. 2021, Eq. 1, 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, H, W], weight [F, C] -> [N, F, H, W]."""
    if 0 in x.shape[-2:]:  # conv2d refuses maps without pixels
        y = torch.einsum("fc,nchw->nfhw", weight, x)
        return y if bias is None else y + bias[:, None, None]
    return F.conv2d(x, weight[:, :, None, None], bias)


def _resize(u: Tensor, height: int, width: int, nearest: bool) -> Tensor:
    """u [N, F, Hg, Wg] -> [N, F, height, width]."""
    if u.shape[-2:] == (height, width):
        return u
    if 0 in (height, width):  # interpolate refuses; no value is left, only the shape
        rows, columns = (torch.zeros(size, dtype=torch.int64, device=u.device) for size in (height, width))
        return u.index_select(-2, rows).index_select(-1, columns)
    if nearest:
        return F.interpolate(u, size=(height, width), mode="nearest")
    return F.interpolate(u, size=(height, width), mode="bilinear", align_corners=False)


def _resize_matrix(coarse: int, fine: int, nearest: bool, like: Tensor) -> Tensor:
    """[fine, coarse]: the resizing of one axis as a matrix."""
    eye = torch.eye(coarse, dtype=like.dtype, device=like.device)
    if coarse == fine or fine == 0:
        return eye[:fine]
    options = {"mode": "nearest"} if nearest else {"mode": "linear", "align_corners": False}
    return F.interpolate(eye[None], size=fine, **options)[0].T


def pre_activations(
    x: Tensor, g: Tensor, w_x: Tensor, w_g: Tensor, b_g: Tensor, nearest: bool
) -> tuple[Tensor, Tensor]:
    """Wx x and up(Wg g + b_g), both [N, F, H, W]."""
    # A 1x1 convolution commutes with the resizing, whose weights sum to 1: it runs on the coarse grid.
    return _conv1x1(x, w_x), _resize(_conv1x1(g, w_g, b_g), *x.shape[-2:], nearest)


def attention_gate(
    x: Tensor,
    g: Tensor,
    w_x: Tensor,
    w_g: Tensor,
    b_g: Tensor,
    w_psi: Tensor,
    b_psi: Tensor,
    mode: str = "additive",
    upsample: str = "bilinear",
) -> tuple[Tensor, Tensor]:
    """x [N, Cx, H, W], g [N, Cg, Hg, Wg], weights [F, C] -> (out as x, alpha [N, 1, H, W])."""
    t, v = pre_activations(x, g, w_x, w_g, b_g, upsample == "nearest")
    s = F.relu(t * v if mode == "multiplicative" else t + v)
    alpha = torch.sigmoid(_conv1x1(s, w_psi[None], b_psi))
    return alpha * x, alpha


def active_bits(
    x: Tensor, g: Tensor, w_x: Tensor, w_g: Tensor, b_g: Tensor, multiplicative: bool, nearest: bool
) -> Tensor:
    """[s > 0] (or NaN), 8 channels a byte: uint8 [N, H, W, ceil(F / 8)]; [N, H, W, 0] in multiplicative mode."""
    n, _, height, width = x.shape
    if multiplicative:
        return x.new_zeros((n, height, width, 0), dtype=torch.uint8)
    t, v = pre_activations(x, g, w_x, w_g, b_g, nearest)
    active = (~(t + v <= 0)).permute(0, 2, 3, 1)
    active = F.pad(active, (0, -w_x.shape[0] % 8)).unflatten(-1, (-1, 8))
    places = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=x.device)
    return (active * places).sum(-1, dtype=torch.uint8)


def attention_gate_backward(
    dout: Tensor,
    dalpha: Tensor,
    x: Tensor,
    g: Tensor,
    w_x: Tensor,
    w_g: Tensor,
    b_g: Tensor,
    w_psi: Tensor,
    b_psi: Tensor,
    gate: Tensor,
    mask: Tensor,
    multiplicative: bool,
    nearest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the seven inputs, by the chain rule; differentiable.

    `gate` is alpha, in float32 for half inputs. `mask` is not read: s is formed again.
    """
    alpha = gate.to(x.dtype)
    t, v = pre_activations(x, g, w_x, w_g, b_g, nearest)
    s = t * v if multiplicative else t + v
    active = ~(s <= 0)
    dlogit = (dalpha + (dout * x).sum(1, keepdim=True)) * (1 - alpha) * alpha
    ds = torch.where(active, dlogit * w_psi[:, None, None], 0)
    dt, dv = (ds * v, ds * t) if multiplicative else (ds, ds)
    # The transposed resizing as two matrix products: deterministic on every device, and differentiable.
    rows = _resize_matrix(g.shape[-2], x.shape[-2], nearest, dv)
    columns = _resize_matrix(g.shape[-1], x.shape[-1], nearest, dv)
    du = rows.T @ dv @ columns
    return (
        alpha * dout + torch.einsum("nfhw,fc->nchw", dt, w_x),
        torch.einsum("nfhw,fc->nchw", du, w_g),
        torch.einsum("nfhw,nchw->fc", dt, x),
        torch.einsum("nfhw,nchw->fc", du, g),
        du.sum((0, 2, 3)),
        torch.where(active, dlogit * s, 0).sum((0, 2, 3)),
        dlogit.sum().reshape(1),
    )
