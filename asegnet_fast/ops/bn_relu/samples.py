"""Inputs that the contract runs this folder's ops on: odd, non-square, strided, empty, one and many channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from asegnet_fast.ops._samples import LAYOUTS, lay_out

#: name -> shape of x. Those from "one_channel" on are cut into several steps in one layout or the other.
SHAPES = {
    "even": (2, 3, 4, 6),
    "odd": (2, 5, 7, 5),
    "wide": (1, 17, 3, 70),
    "empty_batch": (0, 3, 4, 6),
    "one_channel": (1, 1, 301, 203),
    "steps": (2, 48, 33, 28),
}


def inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """(name, (x, weight, bias, running_mean, running_var, training, eps, relu)); no running ones in training."""
    for name, shape in SHAPES.items():
        for layout in LAYOUTS[:2] if name in ("one_channel", "steps") else LAYOUTS:
            for training, relu in ((True, True), (True, False), (False, True)):
                g = torch.Generator().manual_seed(len(name) + 3 * training + relu)
                channels = shape[1]
                x = torch.randn(shape, generator=g) * 2 + torch.randn(channels, 1, 1, generator=g)
                weight, bias, mean = (torch.randn(channels, generator=g) for _ in range(3))
                var = torch.rand(channels, generator=g) + 0.5
                x, weight, bias, mean, var = (t.to(device, dtype) for t in (x, weight, bias, mean, var))
                running = (None, None) if training else (mean, var)
                label = f"{name}-{layout}{'-train' if training else ''}{'' if relu else '-linear'}"
                yield label, (lay_out(x, layout), weight, bias, *running, training, 1e-3, relu)


def exact_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """Running statistics whose standard deviation is 2, small integers otherwise: no result needs rounding."""
    for name, shape in SHAPES.items():
        for layout in LAYOUTS[:2]:
            g = torch.Generator().manual_seed(len(name))
            x = torch.randint(-3, 4, shape, generator=g)
            weight, bias, mean = (torch.randint(-2, 3, shape[1:2], generator=g) for _ in range(3))
            var = torch.full(shape[1:2], 3.75)
            x, weight, bias, mean, var = (t.to(device, dtype) for t in (x, weight, bias, mean, var))
            yield f"{name}-{layout}", (lay_out(x, layout), weight, bias, mean, var, False, 0.25, True)
