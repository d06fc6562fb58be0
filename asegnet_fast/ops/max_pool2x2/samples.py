"""Inputs that the contract runs this folder's ops on: odd, non-square, strided, empty, with ties and NaN."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from asegnet_fast.ops._samples import LAYOUTS, lay_out, with_special_values
from asegnet_fast.ops.max_pool2x2 import reference

#: name -> shape of the full map
SHAPES = {
    "even": (2, 3, 4, 6),
    "odd": (2, 5, 7, 5),
    "single_window": (1, 2, 2, 3),
    "one_channel": (3, 1, 6, 4),
    "wide": (1, 17, 3, 70),
    "empty_batch": (0, 3, 4, 6),
}


def inputs(
    dtype: torch.dtype = torch.float32, device: str = "cpu", integers: bool = False
) -> Iterator[tuple[str, tuple[Tensor, bool]]]:
    """(name, (x, ceil_mode)) with many ties; the float samples also hold NaN, infinities and both zeros."""
    for name, shape in SHAPES.items():
        for layout in LAYOUTS:
            for ceil_mode in (False, True):
                g = torch.Generator().manual_seed(len(name) + 7 * ceil_mode)
                x = torch.randint(-3, 4, shape, generator=g).to(torch.float64)
                if not integers:
                    x = with_special_values(x, g)
                x = lay_out(x.to(device=device, dtype=dtype), layout)
                yield f"{name}-{layout}{'-ceil' if ceil_mode else ''}", (x, ceil_mode)


def unpool_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """(name, (y, code, height, width)) for maps of all three sizes a pooled side may come from."""
    for name, (x, ceil_mode) in inputs(dtype, device, integers=True):
        y, code = reference.max_pool2x2(x, ceil_mode)
        y = (y + 0.25).contiguous(memory_format=torch.channels_last) if "channels_last" in name else y + 0.25
        code = code.contiguous(memory_format=torch.channels_last) if "channels_last" in name else code
        yield name, (y, code, *x.shape[-2:])
