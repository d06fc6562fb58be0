"""attention_gate against the same gate in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.attention_gate import reference, samples
from benchmarks.common import DTYPES, SIZE, Case, generator, levels, nbytes


def _plain(
    x: Tensor, g: Tensor, w_x: Tensor, w_g: Tensor, b_g: Tensor, w_psi: Tensor, b_psi: Tensor
) -> tuple[Tensor, Tensor]:
    up = F.interpolate(F.conv2d(g, w_g[:, :, None, None], b_g), size=x.shape[-2:], mode="bilinear")
    s = F.relu(F.conv2d(x, w_x[:, :, None, None]) + up)
    alpha = torch.sigmoid(F.conv2d(s, w_psi[None, :, None, None], b_psi))
    return alpha * x, alpha


def _inputs(
    shape: tuple[int, ...], gating: tuple[int, ...], f: int, device: torch.device
) -> tuple[Tensor, ...]:
    g = generator(shape[1])
    maps = torch.randn(shape, generator=g), torch.randn(gating, generator=g)
    return tuple(t.to(device) for t in (*maps, *samples.weights(shape[1], gating[1], f, g)))


def cases(batch: int) -> Iterator[Case]:
    """The gate of every level (g at half the size, as many channels, F = C / 2), and one with a wider g."""
    sizes = [
        (level.name, level.shape, level.shape[1], level.compiled, level.quick) for level in levels(batch)
    ]
    sizes.append((f"L1 64x{SIZE}x{SIZE}, g 128 channels", (batch, 64, SIZE, SIZE), 128, True, False))
    for name, shape, gating_channels, compiled, quick in sizes:
        n, c, height, width = shape
        gating, inter = (n, gating_channels, height // 2, width // 2), c // 2
        for dtype in DTYPES:
            alpha = nbytes((n, height, width), dtype)
            x_and_g = nbytes(shape, dtype) + nbytes(gating, dtype)
            yield Case(
                op="attention_gate",
                name=f"gate {name}",
                dtype=dtype,
                shapes={"x": shape, "g": gating, "w_x": (inter, c)},
                inputs=lambda device, shape=shape, gating=gating, inter=inter: _inputs(
                    shape, gating, inter, device
                ),
                ours=af.attention_gate,
                reference=reference.attention_gate,
                peer=_plain,
                gradients_of=range(7),
                bytes_moved={
                    "forward": x_and_g + nbytes(shape, dtype) + alpha,
                    # x, g, dout, dalpha and alpha in; dx and dg out
                    "backward": 2 * x_and_g + nbytes(shape, dtype) + 2 * alpha,
                },
                outputs=2,
                in_norm=True,
                compiled=compiled,
                quick=quick,
            )


def triton_cases(dtype: torch.dtype, layout: torch.memory_format) -> Iterator[tuple[str, Callable]]:
    """What `benchmarks.triton_kernels` compiles: few, many and odd channels, both modes and resizings."""
    for channels, side, flags in (
        (64, 256, (False, False)),
        (512, 16, (False, False)),
        (64, 256, (False, True)),
        (64, 256, (True, False)),
        (7, 33, (False, False)),
    ):
        features = max(channels // 2, 1)
        maps = ((16, channels, side, side), (16, 2 * channels, side // 2, side // 2))
        weights = ((features, channels), (features, 2 * channels), (features,), (features,), (1,))
        x, g = (torch.empty(s, dtype=dtype, device="meta").contiguous(memory_format=layout) for s in maps)
        args = (x, g, *(torch.empty(s, dtype=dtype, device="meta") for s in weights))

        def run(kernels: ModuleType, args: tuple = args, flags: tuple = flags) -> None:
            out, alpha, gate, mask = kernels.attention_gate(*args, *flags)
            saved = gate if gate.numel() else alpha
            kernels.attention_gate_backward(out, alpha, *args, saved, mask, *flags)

        mode = f"{('additive', 'multiplicative')[flags[0]]}, {('bilinear', 'nearest')[flags[1]]}"
        yield f"{channels} channels, {mode}", run
