"""Losses on whatever finite logits and labels there are: no value or gradient that is not finite; published errors."""

import math

import pytest
import torch
from torch import Tensor

import asegnet_fast as af
from asegnet_fast.ops.tversky.samples import LAYOUTS, lay_out
from benchmarks import loss_error
from tests import tolerances
from tests.examples import examples

IGNORED = 200
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
KINDS = ("dice", "literal", "generalized_dice", "tversky", "focal_tversky", "cross_entropy")


class Draw:
    """Seeded choices."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def of(self, options):
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def within(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def normal(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def labels(self, count: int, shape) -> Tensor:
        return torch.randint(0, count, shape, generator=self.generator)


def draw_target(draw: Draw, classes: int, shape) -> tuple[Tensor, bool]:
    """Labels, and whether some are IGNORED: of every class, of one alone, of a rare one, or none that counts."""
    kind = draw.of(("random", "random", "one class", "rare", "some ignored", "all ignored"))
    target = draw.labels(classes, shape)
    if kind == "one class":
        target = torch.full(shape, draw.of(range(classes)))
    elif kind == "rare":
        target = target * (draw.labels(50, shape) == 0)
    elif kind == "some ignored":
        target = torch.where(draw.labels(3, shape) == 0, IGNORED, target)
    elif kind == "all ignored":
        target = torch.full(shape, IGNORED)
    return target.to(draw.of(LABELS)), "ignored" in kind


def draw_logits(draw: Draw, dtype: torch.dtype, channels: int, target: Tensor) -> Tensor:
    shape = (target.shape[0], channels, *target.shape[1:])
    most = torch.finfo(dtype).max
    kind = draw.of(("random", "magnitude", "extremes", "equal", "tiny", "right", "wrong"))
    noise = draw.normal(shape)
    if kind == "random":
        z = draw.of((0.1, 1.0, 10.0, 100.0)) * noise
    elif kind == "magnitude":  # each logit of its own
        exponents = draw.within(-8, math.log10(most)) * noise.abs().clamp(max=1)
        z = noise.sign() * 10**exponents
    elif kind == "extremes":
        values = torch.tensor([-most, -1e4, -90.0, -0.0, 0.0, 87.5, 1e4, most], dtype=torch.float64)
        z = values[draw.labels(len(values), shape)]
    elif kind == "equal":
        z = torch.full(shape, draw.of((0.0, -1e4, most)), dtype=torch.float64)
    elif kind == "tiny":
        z = torch.finfo(dtype).tiny * noise
    else:
        size = draw.of((20.0, 88.0, 1e4, most))
        labels = torch.arange(max(channels, 2)).view(
            -1, *[1] * (target.dim() - 1)
        ) == target.long().unsqueeze(1)
        z = (2 * labels.double() - 1) * (size if kind == "right" else -size)
        z = z[:, 1:] if channels == 1 else z
    return lay_out(z.clamp(-most, most).to(dtype), draw.of(LAYOUTS[:3]))


def draw_loss(draw: Draw, kind: str, classes: int) -> tuple:
    """A loss function of that kind, and its options."""
    options: dict = {
        "weight": draw.of((None, [1.0 + c for c in range(classes)], [0.0] * (classes - 1) + [1.0]))
    }
    if kind != "cross_entropy":
        options["reduce_over"] = draw.of(("image", "batch"))
        options["include_background"] = draw.of((True, False))
        options["eps"] = draw.of((1e-8, 1e-3, 1.0))
    if kind in ("tversky", "focal_tversky"):
        options["alpha"], options["beta"] = draw.of(((0.3, 0.7), (0.0, 1.0), (1.0, 0.0), (2.0, 5.0)))
    if kind == "focal_tversky":
        options["gamma"] = draw.of((0.5, 1.0, 4 / 3, 3.0))
    if kind == "literal":
        options["variant"] = "literal"
    names = {"literal": "dice"}
    return getattr(af, f"{names.get(kind, kind)}_loss"), options


def check(seed: int) -> None:
    draw = Draw(seed)
    dtype, channels, kind = draw.of(DTYPES), draw.of((1, 2, 2, 3, 4, 4, 7)), draw.of(KINDS)
    classes = max(channels, 2)
    shape = draw.of(
        ((1, 1, 1), (2, 5, 7), (2, 16, 16), (3, 33), (1, 4, 3, 5), (1, 40, 41), (0, 4, 4), (2, 0, 3))
    )
    target, ignored = draw_target(draw, classes, shape)
    logits = draw_logits(draw, dtype, channels, target).requires_grad_()
    loss_of, options = draw_loss(draw, kind, classes)
    loss = loss_of(logits, target, ignore_index=IGNORED if ignored else None, **options)
    (grad,) = torch.autograd.grad(loss, logits)
    case = f"seed {seed}: {kind} {dtype} {tuple(logits.shape)} {options}"
    assert grad.isfinite().all(), f"gradient of {case}"
    # Cross-entropy's value alone may be too large for its dtype: -log p is as large as the spread of the logits.
    terms = (
        logits.detach().double().abs().max().item() * 2 * classes * target.numel() if target.numel() else 0
    )
    if kind != "cross_entropy" or terms < torch.finfo(loss.dtype).max:
        assert loss.isfinite(), f"value of {case}"


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(examples(300, 300), id="some"),
        pytest.param(examples(10_000, 10_000), id="many", marks=pytest.mark.extended),
    ],
)
def test_value_and_gradient_are_finite_for_finite_logits(count):
    for seed in range(count):
        check(seed)


@pytest.mark.parametrize("dtype", loss_error.DTYPES, ids=str)
def test_errors_are_within_the_published_bounds(dtype):
    for row in loss_error.measure(dtype, seeds=1):
        assert row.value <= tolerances.LOSS_VALUE[dtype], row
        assert row.gradient <= tolerances.LOSS_GRADIENT[dtype], row
