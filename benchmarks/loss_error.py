"""Errors of the losses against float64, beside plain PyTorch's: `python -m benchmarks.loss_error [--out FILE]`.

Every case is seeded. The exact value and gradient are those of the reference in float64 on the same, already
rounded, logits. The value's error is relative to the value; the gradient's is its largest error relative to its
largest entry. Plain PyTorch is what a user would write (`benchmarks/ops/tversky.py`): softmax in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.ops.tversky import _LOSSES as LOSSES
from tests import tolerances

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLASSES = (2, 4)
INPUTS = ("random", "saturated", "rare foreground")
SEEDS = 5
SIZE = 96
SCALE = (
    2.0**10
)  # of the loss in backward: single gradients of a mean over pixels are below what float16 can hold


class Row(NamedTuple):
    """The largest errors over the seeds, ours and plain PyTorch's."""

    loss: str
    classes: int
    inputs: str
    value: float
    plain_value: float
    gradient: float
    plain_gradient: float


def inputs(kind: str, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """(logits, target) of two images. Saturated: sure of the right class, of a wrong one in 1 % of the pixels."""
    g = torch.Generator().manual_seed(seed)
    shape = (2, SIZE, SIZE)
    target = torch.randint(0, classes, shape, generator=g)
    logits = 2 * torch.randn(2, classes, SIZE, SIZE, generator=g)
    if kind == "rare foreground":
        target = target * (torch.rand(shape, generator=g) < 0.005)
    elif kind == "saturated":
        seen = torch.where(torch.rand(shape, generator=g) < 0.01, (target + 1) % classes, target)
        logits += 12 * torch.nn.functional.one_hot(seen, classes).movedim(-1, 1)
    return logits, target


def _run(function, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, target)
    (grad,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, SCALE))
    return loss.detach().double(), grad.double()


def _relative(got: Tensor, exact: Tensor) -> float:
    return ((got - exact).abs().max() / exact.abs().max()).item()


def measure(dtype: torch.dtype, seeds: int = SEEDS) -> Iterator[Row]:
    """One row for each loss, number of classes and kind of input."""
    for name, (ours, reference, peer) in LOSSES.items():
        for classes in CLASSES:
            for kind in INPUTS:
                errors = []
                for seed in range(seeds):
                    logits, target = inputs(kind, classes, seed)
                    logits = logits.to(dtype)
                    exact = _run(reference, logits.double(), target)
                    found = [_run(f, logits, target) for f in (ours, peer)]
                    errors.append([_relative(f[i], exact[i]) for i in (0, 1) for f in found])
                yield Row(name, classes, kind, *torch.tensor(errors).amax(0).tolist())


def report() -> str:
    """The table, in markdown."""
    lines = ["# Errors of the losses against float64", "", " ".join(__doc__.split("\n\n")[1].split()), ""]
    for dtype in DTYPES:
        value, gradient = tolerances.LOSS_VALUE[dtype], tolerances.LOSS_GRADIENT[dtype]
        lines += [
            f"## {str(dtype).removeprefix('torch.')}: value within {value:.1e}, gradient within {gradient:.1e}",
            "",
            "| loss | classes | inputs | value | plain PyTorch | gradient | plain PyTorch |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in measure(dtype):
            errors = " | ".join(f"{e:.1e}" for e in row[3:])
            lines.append(f"| {row.loss} | {row.classes} | {row.inputs} | {errors} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss_error", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, help="a file for the table; without it, the terminal")
    out = parser.parse_args(argv).out
    text = report()
    if out:
        out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
