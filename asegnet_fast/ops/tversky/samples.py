"""Inputs that the contract runs this folder's ops on: any spatial shape, strided, empty, saturated, with NaN."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from asegnet_fast.ops._samples import lay_out
from asegnet_fast.ops.tversky import reference

IGNORED = 100

#: name -> (logits' shape, label dtype)
SHAPES = {
    "tiny": ((2, 2, 1, 3), torch.int64),
    "tiny_one_channel": ((1, 1, 2, 3), torch.int64),
    "tiny_three_classes": ((1, 3, 2, 3), torch.uint8),
    "two_classes": ((2, 2, 5, 7), torch.int64),
    "one_channel": ((3, 1, 6, 5), torch.bool),
    "five_classes": ((2, 5, 3, 9), torch.uint8),
    "many_classes": ((1, 19, 8, 3), torch.int16),
    "volume": ((2, 3, 3, 4, 5), torch.int32),
    "no_space": ((6, 4), torch.int8),
    "large": ((2, 2, 131, 67), torch.uint8),
    "empty_batch": ((0, 2, 4, 6), torch.int64),
    "no_pixels": ((2, 3, 0, 6), torch.int64),
}
LAYOUTS = ("contiguous", "channels_last", "reversed", "expanded")


def labels(
    shape: tuple[int, ...], classes: int, dtype: torch.dtype, g: torch.Generator, ignored: bool
) -> Tensor:
    t = torch.randint(0, classes, shape, generator=g)
    if ignored and dtype != torch.bool:
        t = torch.where(torch.rand(shape, generator=g) < 0.2, IGNORED, t)
    return t.to(dtype)


def inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """(name, (logits, target, ignore_index)): moderate, saturated and NaN logits in every layout."""
    for name, (shape, label_dtype) in SHAPES.items():
        for layout in LAYOUTS:
            g = torch.Generator().manual_seed(len(name))
            spatial = (shape[0], *shape[2:])
            logits = 3 * torch.randn(shape, generator=g, dtype=torch.float64)
            ignored = label_dtype != torch.bool
            target = labels(spatial, max(shape[1], 2), label_dtype, g, ignored)
            target = lay_out(target, "reversed" if layout == "reversed" else "contiguous")
            logits = lay_out(logits.to(device=device, dtype=dtype), layout)
            yield f"{name}-{layout}", (logits, target.to(device), IGNORED if ignored else None)
    g = torch.Generator().manual_seed(5)
    target = labels((2, 4, 5), 3, torch.int64, g, True).to(device)
    with_nan = torch.randn((2, 3, 4, 5), generator=g, dtype=torch.float64)
    # Some pixels stay moderate: among saturated ones alone the gradient is 1e-100, noise in any reference.
    saturated = torch.where(torch.rand((2, 1, 4, 5), generator=g) < 0.5, 1e4, 1.0) * with_nan
    yield "saturated", (saturated.to(device=device, dtype=dtype), target, IGNORED)
    with_nan[0, 1, 2, 3] = with_nan[1, 0, 0, 0] = float("nan")
    target[1, 0, 0] = IGNORED  # a NaN that is ignored, and one that is not
    yield "nan", (with_nan.to(device=device, dtype=dtype), target, IGNORED)


def exact_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """Inputs whose probabilities are 0, 1, or a power of two, so that every sum is exact."""
    for name, (shape, _) in SHAPES.items():
        g = torch.Generator().manual_seed(9)
        target = labels((shape[0], *shape[2:]), max(shape[1], 2), torch.int64, g, False)
        one_hot = torch.arange(max(shape[1], 2)).view(-1, *[1] * (len(shape) - 2)) == target.unsqueeze(1)
        for kind, z in {"right": one_hot * 8192.0, "wrong": one_hot * -8192.0}.items():
            if shape[1] == 1:
                z = z[:, 1:] - z[:, :1]
            elif kind == "wrong" and shape[1] > 2:  # one wrong class gets all the mass
                z = one_hot.roll(1, dims=1) * 8192.0
            yield f"{name}-{kind}", (z.to(device=device, dtype=dtype), target.to(device), None)


#: name -> kind, alpha, beta, gamma, eps, pool_batch, include_background
OPTIONS = {
    "tversky": (reference.TVERSKY, 0.3, 0.7, 1.0, 1e-8, False, True),
    "focal": (reference.TVERSKY, 0.3, 0.7, 4 / 3, 1e-8, False, True),
    "focal-batch-foreground": (reference.TVERSKY, 0.7, 0.3, 2.0, 1e-3, True, False),
    "literal": (reference.LITERAL_DICE, 0.5, 0.5, 1.0, 1e-8, False, True),
    "generalized": (reference.GENERALIZED_DICE, 0.5, 0.5, 1.0, 1.19e-7, False, True),
    "generalized-batch-foreground": (reference.GENERALIZED_DICE, 0.5, 0.5, 1.0, 1.19e-7, True, False),
    "cross_entropy": (reference.CROSS_ENTROPY, 0.5, 0.5, 1.0, 1e-8, False, True),
}


def class_weights(classes: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.linspace(0.5, 2.0, classes, dtype=torch.float64).to(device, reference.sums_dtype(dtype))


def loss_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """(name, arguments of the op region_loss): each kind of loss in one layout, the others taking turns."""
    kinds = list(OPTIONS)
    for i, (name, (logits, target, ignore_index)) in enumerate(inputs(dtype, device)):
        every = name.startswith("tiny") or name in (
            "two_classes-contiguous",
            "five_classes-channels_last",
            "saturated",
        )
        for j, kind in enumerate(kinds if every else (kinds[i % len(kinds)],)):
            weight = class_weights(max(logits.shape[1], 2), dtype, device) if (i + j) % 2 else None
            yield f"{name}-{kind}", (logits, target, weight, ignore_index, *OPTIONS[kind])


def exact_loss_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """Perfect and perfectly wrong predictions; with an eps that vanishes beside 1 their losses are exact numbers."""
    for name, (logits, target, ignore_index) in exact_inputs(dtype, device):
        for kind in ("tversky", "focal", "cross_entropy"):
            loss, alpha, beta, gamma, _, *reduction = OPTIONS[kind]
            yield (
                f"{name}-{kind}",
                (logits, target, None, ignore_index, loss, alpha, beta, gamma, 1e-30, *reduction),
            )


def sums_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """(name, arguments of the op loss_from_sums), with an absent class and without any image."""
    g = torch.Generator().manual_seed(2)
    for name, (images, classes) in {"three": (2, 3), "two": (5, 2), "none": (0, 4)}.items():
        sums = 50 * torch.rand((6, images, classes), generator=g, dtype=torch.float64)
        sums[3] = sums[0] + sums[2]
        if name == "two":
            sums[:, 0, 1] = 0
        for kind, options in OPTIONS.items():
            weight = class_weights(classes, dtype, device) if "batch" in kind else None
            for layout in ("contiguous", "reversed"):
                yield f"{name}-{kind}-{layout}", (lay_out(sums.to(device, dtype), layout), weight, *options)


def exact_sums_inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[tuple[str, tuple]]:
    """Sums of perfect and of perfectly wrong predictions, as in `exact_loss_inputs`."""
    count = torch.tensor([[3, 5, 8], [12, 1, 3]], dtype=torch.float64)
    zero = torch.zeros_like(count)
    rows = {
        "right": (count, zero, zero, count, count, zero),
        "wrong": (zero, count.roll(1, 1), count, count, count.roll(1, 1), 4 * count),
    }
    for name, sums in rows.items():
        for kind in ("tversky", "focal", "focal-batch-foreground", "cross_entropy"):
            loss, alpha, beta, gamma, _, *reduction = OPTIONS[kind]
            yield (
                f"{name}-{kind}",
                (torch.stack(sums).to(device, dtype), None, loss, alpha, beta, gamma, 1e-30, *reduction),
            )
