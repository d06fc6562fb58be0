"""max_pool2x2x2 and max_unpool2x2x2 against torch's max_pool3d (return_indices) and max_unpool3d."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.max_pool2x2x2 import reference
from benchmarks.common import DTYPES, Case, generator, nbytes

#: [C, D, H, W] of the first and the third level of a 3-D U-Net on patches of 64 x 128 x 128.
VOLUMES = ((32, 64, 128, 128), (128, 16, 32, 32))


def _map(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator(len(shape)))


def _torch_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.max_pool3d(x, 2, return_indices=True)


def _torch_unpool(y: Tensor, indices: Tensor, *sides: int) -> Tensor:
    return F.max_unpool3d(y, indices, 2, output_size=sides)


def _unpool(y: Tensor, code: Tensor, *sides: int) -> Tensor:
    return af.max_unpool2x2x2(y, code, sides)


def _with_indices(y: Tensor, code: Tensor, *sides: int) -> tuple:
    rows = reference.indices_of(code, sides)
    return y, rows, *sides


def cases(batch: int) -> Iterator[Case]:
    """Pool and unpool of two volumes; a quarter of the batch, since a volume holds many slices."""
    for volume in VOLUMES:
        shape = (max(1, batch // 4), *volume)
        pooled = (*shape[:2], *(s // 2 for s in volume[1:]))
        name = "x".join(map(str, volume))
        for dtype in DTYPES:
            moved = nbytes(shape, dtype) + nbytes(pooled, dtype) + nbytes(pooled, torch.uint8)
            shared = {
                "op": "max_pool2x2x2",
                "dtype": dtype,
                "shapes": {"map": shape},
                "gradients_of": (0,),
                "bytes_moved": {"forward": moved, "backward": moved},
                "compiled": volume is VOLUMES[-1],
                "quick": volume is VOLUMES[-1],
            }
            yield Case(
                name=f"pool3d {name}",
                inputs=lambda device, shape=shape: (_map(shape).to(device),),
                ours=af.max_pool2x2x2,
                reference=reference.max_pool2x2x2,
                peer=_torch_pool,
                **shared,
            )
            yield Case(
                name=f"unpool3d {name}",
                inputs=lambda device, shape=shape: (
                    *reference.max_pool2x2x2(_map(shape).to(device)),
                    *shape[2:],
                ),
                ours=_unpool,
                reference=reference.max_unpool2x2x2,
                peer=_torch_unpool,
                peer_args=_with_indices,
                **shared,
            )
