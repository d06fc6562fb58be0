"""bn_relu, alone and with the pool, against torch's batch_norm, relu and max_pool2d in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.bn_relu import reference
from benchmarks.common import DTYPES, Case, Level, generator, levels, nbytes

_EPS = 1e-5
# No side keeps running statistics: torch's backward refuses a retained graph once they have moved.


def _inputs(level: Level, device: torch.device) -> tuple[Tensor, ...]:
    g = generator(level.index)
    channels = level.shape[1]
    parameters = (torch.randn(channels, generator=g) for _ in range(2))
    maps = torch.randn(level.shape, generator=g)
    return tuple(t.to(device) for t in (maps, *parameters))


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return af.bn_relu(x, None, None, weight, bias, True, 0.1, _EPS)


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, True, 0.1, _EPS))


def _ours_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return af.bn_relu_max_pool2x2(x, None, None, weight, bias, True, 0.1, _EPS)[0]


def _plain_pool(*args: Tensor) -> Tensor:
    return F.max_pool2d(_plain(*args), 2, return_indices=True)[0]


def _ours_full(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return af.bn_relu_max_pool2x2(x, None, None, weight, bias, True, 0.1, _EPS, return_full=True)[:2]


def _plain_full(*args: Tensor) -> tuple[Tensor, Tensor]:
    y = _plain(*args)
    return y, F.max_pool2d(y, 2, return_indices=True)[0]


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.bn_relu(x, weight, bias, None, None, True, _EPS, True)[0]


def _reference_full(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return reference.bn_relu_max_pool2x2(x, weight, bias, None, None, True, _EPS, True, True)[:2]


def _reference_pool(*args: Tensor) -> Tensor:
    return _reference_full(*args)[1]


def cases(batch: int) -> Iterator[Case]:
    """Every level's map: alone, before a pool whose input is not needed again (SegNet), and where it is (A-SegNet)."""
    for level in levels(batch):
        n, c, height, width = level.shape
        pooled = (n, c, height // 2, width // 2)
        for dtype in DTYPES:
            full = nbytes(level.shape, dtype)
            small = nbytes(pooled, dtype) + nbytes(pooled, torch.uint8)
            shared = {
                "op": "bn_relu",
                "dtype": dtype,
                "shapes": {"x": level.shape},
                "inputs": lambda device, level=level: _inputs(level, device),
                "gradients_of": (0, 1, 2),
                "in_norm": True,
                "compiled": level.compiled,
                "quick": level.quick,
            }
            # The statistics need the whole map before the first result does, so inputs are read twice.
            yield Case(
                name=f"bn_relu {level.name}",
                ours=_ours,
                reference=_reference,
                peer=_plain,
                bytes_moved={"forward": 3 * full, "backward": 5 * full},
                **shared,
            )
            yield Case(
                name=f"bn_relu_max_pool2x2 {level.name}",
                ours=_ours_pool,
                reference=_reference_pool,
                peer=_plain_pool,
                bytes_moved={"forward": 2 * full + small, "backward": 3 * full + 2 * small},
                **shared,
            )
            yield Case(
                name=f"bn_relu_max_pool2x2 with y {level.name}",
                ours=_ours_full,
                reference=_reference_full,
                peer=_plain_full,
                bytes_moved={"forward": 3 * full + small, "backward": 5 * full + 2 * small},
                outputs=2,
                **(shared | {"compiled": False}),
            )


def triton_cases(dtype: torch.dtype, layout: torch.memory_format) -> Iterator[tuple[str, Callable]]:
    """What `benchmarks.triton_kernels` compiles: the level of most bytes and a deep one, in training."""
    for shape in ((16, 64, 256, 256), (16, 512, 17, 16)):
        x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
        weight = torch.empty(shape[1], dtype=torch.promote_types(dtype, torch.float32), device="meta")

        def run(kernels: ModuleType, x: Tensor = x, w: Tensor = weight) -> None:
            options = (True, _EPS, True)
            y, mean, var = kernels.bn_relu(x, w, w, None, None, *options)
            kernels.bn_relu_backward(y, x, w, w, mean, var, *options)
            for full in (True, False):
                y, pooled, code, mean, var = kernels.bn_relu_max_pool2x2(x, w, w, None, None, *options, full)
                dy = y if full else None
                kernels.bn_relu_max_pool2x2_backward(pooled, dy, code, x, w, w, mean, var, *options)

        yield "x".join(map(str, shape)), run
