"""Inputs that the attention gate is tested with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def weights(cx: int, cg: int, f: int, g: torch.Generator) -> list[Tensor]:
    """w_x, w_g, b_g, w_psi, b_psi."""
    # Gains that leave alpha away from 0 and 1, where gradients carry information.
    return [
        torch.randn(f, cx, generator=g) / cx**0.5,
        torch.randn(f, cg, generator=g) / cg**0.5,
        torch.randn(f, generator=g) / 2,
        torch.randn(f, generator=g) / f**0.5,
        torch.randn(1, generator=g) / 2,
    ]


#: name: (N, Cx, Cg, F), (H, W), (Hg, Wg), mode, upsample, layout
_CASES = {
    "tiny": ((1, 2, 1, 2), (3, 4), (2, 2), "additive", "bilinear", "nchw"),
    "tiny-multiplicative": ((1, 2, 2, 1), (4, 3), (2, 3), "multiplicative", "nearest", "channels_last"),
    "half-bilinear": ((2, 3, 5, 4), (6, 10), (3, 5), "additive", "bilinear", "nchw"),
    "half-channels_last": ((2, 16, 32, 9), (6, 8), (3, 4), "additive", "bilinear", "channels_last"),
    "same-size": ((1, 5, 3, 2), (5, 7), (5, 7), "additive", "bilinear", "channels_last"),
    "same-size-multiplicative": ((2, 5, 3, 2), (3, 4), (3, 4), "multiplicative", "nearest", "nchw"),
    "odd-ratio": ((2, 7, 4, 17), (7, 11), (3, 4), "additive", "bilinear", "nchw"),
    "odd-ratio-multiplicative": (
        (2, 16, 4, 17),
        (7, 11),
        (3, 4),
        "multiplicative",
        "bilinear",
        "channels_last",
    ),
    "nearest": ((1, 16, 16, 8), (9, 5), (4, 3), "additive", "nearest", "channels_last"),
    "nearest-multiplicative": ((1, 3, 2, 3), (9, 5), (4, 3), "multiplicative", "nearest", "nchw"),
    "one-coarse-pixel": ((1, 4, 2, 3), (5, 6), (1, 1), "additive", "bilinear", "nchw"),
    "one-channel": ((2, 1, 1, 1), (4, 6), (2, 6), "additive", "bilinear", "nchw"),
    "several-tiles": ((1, 16, 16, 33), (10, 70), (5, 35), "additive", "bilinear", "channels_last"),
    "several-strips": ((1, 2, 3, 2), (3, 600), (2, 301), "additive", "bilinear", "nchw"),
    "several-strips-multiplicative": ((1, 2, 3, 2), (3, 600), (2, 301), "multiplicative", "bilinear", "nchw"),
    "transposed": ((2, 6, 3, 5), (8, 6), (4, 3), "additive", "bilinear", "transposed"),
    "sliced": ((2, 6, 3, 5), (8, 6), (4, 3), "multiplicative", "bilinear", "sliced"),
    "no-image": ((0, 3, 2, 4), (6, 4), (3, 2), "additive", "bilinear", "nchw"),
    "no-row": ((2, 3, 2, 4), (0, 4), (0, 2), "additive", "bilinear", "nchw"),
    "no-column-multiplicative": ((2, 3, 2, 4), (4, 0), (2, 0), "multiplicative", "nearest", "nchw"),
}


def feature_map(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str, g: torch.Generator
) -> Tensor:
    """Random [N, C, H, W]: "nchw", "channels_last", "transposed" (H and W swapped in memory) or "sliced"."""
    n, c, h, w = shape
    if layout == "transposed":
        return torch.randn(n, c, w, h, generator=g).to(device, dtype).transpose(2, 3)
    if layout == "sliced":
        return torch.randn(n, 2 * c, h, w + 3, generator=g).to(device, dtype)[:, ::2, :, 1:-2]
    x = torch.randn(shape, generator=g).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """(name, arguments of `attention_gate`): odd, non-square, strided, empty, any ratio, both modes."""
    for name, ((n, cx, cg, f), fine, coarse, mode, upsample, layout) in _CASES.items():
        g = torch.Generator().manual_seed(11)
        x = feature_map((n, cx, *fine), layout, dtype, device, g)
        gating = feature_map((n, cg, *coarse), layout, dtype, device, g)
        gains = [w.to(device, dtype) for w in weights(cx, cg, f, g)]
        yield name, (x, gating, *gains, mode, upsample)


def integers(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """Inputs of -1, 0 and 1 whose sums are exact, and logits that are 0 or so large that alpha is 0, 1/2 or 1.

    Bilinear halves have weights k / 16, so s counts sixteenths; w_psi makes each of them overflow exp.
    """
    factor = 16 * (1024 if dtype == torch.float64 else 128)
    for name, ((n, cx, cg, f), fine, coarse, mode, upsample, layout) in _CASES.items():
        whole = fine == coarse or upsample == "nearest"
        halves = all(s == 2 * c for s, c in zip(fine, coarse, strict=True))
        # Half-precision PyTorch rounds s between its operations, which only whole numbers survive.
        if layout in ("transposed", "sliced") or not (
            whole or (halves and dtype in (torch.float32, torch.float64))
        ):
            continue
        g = torch.Generator().manual_seed(13)
        shapes = ((n, cx, *fine), (n, cg, *coarse), (f, cx), (f, cg), (f,), (f,))
        x, gating, w_x, w_g, b_g, w_psi = (
            torch.randint(-1, 2, s, generator=g).to(device, dtype) for s in shapes
        )
        if layout == "channels_last":
            x, gating = (t.contiguous(memory_format=torch.channels_last) for t in (x, gating))
        b_psi = torch.zeros(1, dtype=dtype, device=device)
        yield name, (x, gating, w_x, w_g, b_g, factor * w_psi, b_psi, mode, upsample)
