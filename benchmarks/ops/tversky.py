"""Softmax with focal Tversky, generalised Dice and cross-entropy against their plain PyTorch forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.tversky import op, reference, samples
from benchmarks.common import DTYPES, SIZE, SMALL, Case, generator, nbytes

IMAGES = 16  # of the paper's batch
CLASSES = (2, 4)


def _inputs(images: int, classes: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    g = generator(classes)
    shape = (images, side, side)
    logits = 2 * torch.randn(images, classes, side, side, generator=g)
    return logits.to(device), torch.randint(0, classes, shape, generator=g).to(device)


def _probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    return p, F.one_hot(target.long(), p.shape[1]).movedim(-1, 1).to(p.dtype)


def plain_focal_tversky(
    logits: Tensor,
    target: Tensor,
    alpha: float = op.ALPHA,
    beta: float = op.BETA,
    gamma: float = op.GAMMA,
    eps: float = op.EPS,
) -> Tensor:
    """`af.focal_tversky_loss` of images as one would write it; sums in float32 or wider."""
    p, g = _probabilities(logits, target)
    tp, sum_p, sum_g = (p * g).sum((2, 3)), p.sum((2, 3)), g.sum((2, 3))
    index = (tp + eps) / (tp + alpha * (sum_p - tp) + beta * (sum_g - tp) + eps)
    return (1 - index).clamp_min(0).pow(1 / gamma).sum(1).mean()  # rounding may leave an index above 1


def _torch_generalized_dice(logits: Tensor, target: Tensor) -> Tensor:
    p, g = _probabilities(logits, target)
    eps = op.EPS_GENERALIZED_DICE
    w = 1 / g.sum((2, 3)).square().clamp(min=eps)
    numerator = 2 * (w * (p * g).sum((2, 3))).sum(1) + eps
    return (1 - numerator / ((w * (p * p + g).sum((2, 3))).sum(1) + eps)).mean()


def _torch_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target)


def _reference(kind: int, gamma: float, eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    options = (kind, op.ALPHA, op.BETA, gamma, eps, False, True)
    return lambda logits, target: reference.region_loss(logits, target, None, None, *options)[0]


#: name -> (ours, reference, peer)
_LOSSES = {
    "focal_tversky": (
        af.focal_tversky_loss,
        _reference(reference.TVERSKY, op.GAMMA, op.EPS),
        plain_focal_tversky,
    ),
    "generalized_dice": (
        af.generalized_dice_loss,
        _reference(reference.GENERALIZED_DICE, 1.0, op.EPS_GENERALIZED_DICE),
        _torch_generalized_dice,
    ),
    "cross_entropy": (
        af.cross_entropy_loss,
        _reference(reference.CROSS_ENTROPY, 1.0, op.EPS),
        _torch_cross_entropy,
    ),
}


def cases(batch: int) -> Iterator[Case]:
    """Each loss of 16 images, whatever `batch` the feature maps have: logits are small beside those; and of one map."""
    sizes = [("", IMAGES, classes, SIZE) for classes in CLASSES] + [("small ", 1, 2, SMALL[-1])]
    for name, (ours, exact, peer) in _LOSSES.items():
        for prefix, images, classes, side in sizes:
            shape = (images, classes, side, side)
            for dtype in DTYPES:
                read = nbytes(shape, dtype) + nbytes((images, side, side), torch.int64)
                yield Case(
                    op="tversky",
                    name=f"{name} {prefix}{classes}x{side}x{side}",
                    dtype=dtype,
                    shapes={"logits": shape},
                    inputs=lambda device, size=(images, classes, side): _inputs(*size, device),
                    ours=ours,
                    reference=exact,
                    peer=peer,
                    gradients_of=(0,),
                    bytes_moved={"forward": read, "backward": read + nbytes(shape, dtype)},
                    compiled=classes == 2 and not prefix and name == "focal_tversky",
                    quick=classes == 2 and not prefix,
                )


def triton_cases(dtype: torch.dtype, layout: torch.memory_format) -> Iterator[tuple[str, Callable]]:
    """What `benchmarks.triton_kernels` compiles: two, one and many classes, and every kind of loss."""
    for classes, label in ((2, torch.uint8), (1, torch.bool), (19, torch.int64)):
        shape = (16, classes, 256, 256)
        logits = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
        target = torch.empty((16, 256, 256), dtype=label, device="meta")

        def run(kernels: ModuleType, logits: Tensor = logits, target: Tensor = target) -> None:
            ignored = None if target.dtype == torch.uint8 else 0
            kinds = samples.OPTIONS if target.dtype == torch.uint8 else ("focal", "generalized")
            for kind in kinds:
                options = samples.OPTIONS[kind]
                loss, coefficients = kernels.region_loss(logits, target, None, ignored, *options)
                kernels.region_loss_backward(loss, logits, target, coefficients, None, ignored, *options)
            sums = kernels.region_sums(logits, target, ignored)
            kernels.region_sums_backward(sums, logits, target, ignored)

        yield f"{classes} classes", run
