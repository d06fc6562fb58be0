"""max_pool2x2 and max_unpool2x2 against torch's max_pool2d (return_indices) and max_unpool2d."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.max_pool2x2 import reference
from benchmarks.common import DTYPES, Case, Level, generator, levels, nbytes


def _map(level: Level) -> Tensor:
    return torch.randn(level.shape, generator=generator(level.index))


def _bytes(level: Level, dtype: torch.dtype) -> int:
    """The map, the pooled map and the codes, each once: in all four directions."""
    n, c, height, width = level.shape
    pooled = (n, c, height // 2, width // 2)
    return nbytes(level.shape, dtype) + nbytes(pooled, dtype) + nbytes(pooled, torch.uint8)


def _torch_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, 2, return_indices=True)


def _torch_unpool(y: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
    return F.max_unpool2d(y, indices, 2, output_size=(height, width))


def _unpool(y: Tensor, code: Tensor, height: int, width: int) -> Tensor:
    return af.max_unpool2x2(y, code, (height, width))


def _with_indices(y: Tensor, code: Tensor, height: int, width: int) -> tuple:
    return y, af.codes_to_indices(code, (height, width)), height, width


def cases(batch: int) -> Iterator[Case]:
    """Pool and unpool of every level's map."""
    for level in levels(batch):
        for dtype in DTYPES:
            moved = _bytes(level, dtype)
            shared = {
                "op": "max_pool2x2",
                "dtype": dtype,
                "shapes": {"map": level.shape},
                "gradients_of": (0,),
                "bytes_moved": {"forward": moved, "backward": moved},
                "compiled": level.compiled,
                "quick": level.quick,
            }
            yield Case(
                name=f"pool {level.name}",
                inputs=lambda device, level=level: (_map(level).to(device),),
                ours=af.max_pool2x2,
                reference=reference.max_pool2x2,
                peer=_torch_pool,
                **shared,
            )
            yield Case(
                name=f"unpool {level.name}",
                inputs=lambda device, level=level: (
                    *reference.max_pool2x2(_map(level).to(device)),
                    *level.shape[-2:],
                ),
                ours=_unpool,
                reference=reference.max_unpool2x2,
                peer=_torch_unpool,
                peer_args=_with_indices,
                **shared,
            )


def triton_cases(dtype: torch.dtype, layout: torch.memory_format) -> Iterator[tuple[str, Callable]]:
    """What `benchmarks.triton_kernels` compiles: the level of most bytes, and odd sides that no vector fits."""
    for shape in ((16, 64, 256, 256), (2, 3, 77, 51)):
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)

        def run(kernels: ModuleType, x: Tensor = x) -> None:
            y, code = kernels.max_pool2x2(x)
            kernels.max_unpool2x2(y, code, *x.shape[2:])
            kernels.max_unpool2x2_backward(x, code)
            indices = code.long()
            kernels.max_unpool2d_indices(y, indices, *x.shape[2:])
            kernels.max_unpool2d_indices_backward(x, indices)

        yield "x".join(map(str, shape)), run
