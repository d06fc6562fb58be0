"""region_sums, loss_from_sums and the region losses: the contract, hand numbers, torch's own, and properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops import _library
from asegnet_fast.ops.tversky import op as tversky_op
from asegnet_fast.ops.tversky import reference, samples
from tests import tolerances
from tests.examples import examples
from tests.ops.contract import Op, assert_close, contract
from tests.ops.memory import arranged, arrangements

LOGITS = torch.zeros(2, 3, 4, 5)
TARGET = torch.zeros(2, 4, 5, dtype=torch.int64)
SUMS = af.region_sums(LOGITS, TARGET)

#: every loss that mixes the sums of an image, by name
REGION_LOSSES = {
    "dice": af.dice_loss,
    "literal": lambda *a, **k: af.dice_loss(*a, variant="literal", **k),
    "generalized_dice": af.generalized_dice_loss,
    "tversky": af.tversky_loss,
    "focal_tversky": af.focal_tversky_loss,
}
LOSSES = {**REGION_LOSSES, "cross_entropy": af.cross_entropy_loss}


@pytest.fixture(autouse=True)
def _forget_compiled_variants():
    torch._dynamo.reset()  # else the many kinds of one function reach the limit of recompilations


def with_label(value, at, dtype=torch.int64):
    target = TARGET.to(dtype, copy=True)
    target[at] = value
    return target


def reference_sums(logits, target, ignore_index):
    s = reference.Sums(*reference.region_sums(logits, target, ignore_index).unbind(0))
    return s.tp, s.tp + s.fp, s.count, s.sum_p2, s.ce, s.fp, s.fn


def call_loss(logits, target, weight, ignore_index, *options):
    return _library.serve("region_loss", logits, target, weight, ignore_index, *options)[0]


def call_loss_from_sums(sums, weight, *options):
    return _library.serve("loss_from_sums", sums, weight, *options)[0]


def large_inputs(dtype):
    """Several chunks for each of several threads."""
    g = torch.Generator().manual_seed(4)
    for layout in ("contiguous", "channels_last"):
        logits = samples.lay_out(torch.randn((2, 3, 160, 151), generator=g).to(dtype), layout)
        yield layout, (logits, torch.randint(0, 3, (2, 160, 151), generator=g), 1)


def large_loss_inputs(dtype):
    for name, (logits, target, ignore_index) in large_inputs(dtype):
        for kind in ("focal", "generalized", "cross_entropy"):
            yield f"{name}-{kind}", (logits, target, None, ignore_index, *samples.OPTIONS[kind])


INPUT_ERRORS = [
    ("logits not a tensor", lambda f: f([1.0], TARGET), TypeError, "logits"),
    ("logits integer", lambda f: f(LOGITS.int(), TARGET), TypeError, "logits"),
    ("logits 1-D", lambda f: f(LOGITS[0, :, 0, 0], TARGET), ValueError, "logits"),
    ("no class", lambda f: f(LOGITS[:, :0], TARGET), ValueError, "logits"),
    ("sparse", lambda f: f(LOGITS.to_sparse(), TARGET), TypeError, "logits"),
    ("target not a tensor", lambda f: f(LOGITS, 3), TypeError, "target"),
    ("target float", lambda f: f(LOGITS, TARGET.float()), TypeError, "target"),
    ("target shape", lambda f: f(LOGITS, TARGET[:, :3]), ValueError, "target"),
    ("target with a class axis", lambda f: f(LOGITS, TARGET.unsqueeze(1)), ValueError, "target"),
    ("target device", lambda f: f(LOGITS, TARGET.to("meta")), TypeError, "target"),
    ("ignore_index", lambda f: f(LOGITS, TARGET, ignore_index=1.5), TypeError, "ignore_index"),
    ("ignore_index too large", lambda f: f(LOGITS, TARGET, ignore_index=2**63), ValueError, "ignore_index"),
    ("label too large", lambda f: f(LOGITS, with_label(3, (1, 2, 3))), RuntimeError, "got 3 at [1, 2, 3]"),
    ("label negative", lambda f: f(LOGITS, with_label(-1, (0, 0, 1))), RuntimeError, "got -1 at [0, 0, 1]"),
    (
        "label int64",
        lambda f: f(LOGITS, with_label(2**40, (1, 3, 4))),
        RuntimeError,
        f"got {2**40} at [1, 3, 4]",
    ),
    (
        "label uint8",
        lambda f: f(LOGITS, with_label(255, (0, 3, 4), torch.uint8)),
        RuntimeError,
        "got 255 at [0, 3, 4]",
    ),
    (
        "not ignored",
        lambda f: f(LOGITS, with_label(9, (0, 1, 0)), ignore_index=8),
        RuntimeError,
        "ignore_index 8",
    ),
]
WEIGHT_ERRORS = [
    ("weight kind", lambda f: f(LOGITS, TARGET, weight=2.0), TypeError, "weight"),
    ("weight entries", lambda f: f(LOGITS, TARGET, weight=["a"] * 3), TypeError, "weight"),
    ("weight beyond float", lambda f: f(LOGITS, TARGET, weight=[1, 2, 10**400]), ValueError, "weight"),
    ("weight length", lambda f: f(LOGITS, TARGET, weight=[1, 2]), ValueError, "weight"),
    ("weight shape", lambda f: f(LOGITS, TARGET, weight=torch.ones(1, 3)), ValueError, "weight"),
    (
        "weight gradient",
        lambda f: f(LOGITS, TARGET, weight=torch.ones(3, requires_grad=True)),
        ValueError,
        "weight",
    ),
    ("weight complex", lambda f: f(LOGITS, TARGET, weight=torch.ones(3) + 1j), TypeError, "weight"),
    ("weight device", lambda f: f(LOGITS, TARGET, weight=torch.ones(3, device="meta")), TypeError, "weight"),
]
OPTION_ERRORS = [
    ("eps zero", lambda f: f(LOGITS, TARGET, eps=0), ValueError, "eps"),
    ("eps NaN", lambda f: f(LOGITS, TARGET, eps=math.nan), ValueError, "eps"),
    ("eps beyond float", lambda f: f(LOGITS, TARGET, eps=10**400), ValueError, "eps"),
    ("reduce_over", lambda f: f(LOGITS, TARGET, reduce_over="pixel"), ValueError, "reduce_over"),
    ("background", lambda f: f(LOGITS, TARGET, include_background=1), TypeError, "include_background"),
]


def errors(function, *groups):
    return [
        (name, lambda t=thunk: t(function), kind, words) for g in groups for name, thunk, kind, words in g
    ]


globals().update(
    contract(
        Op(
            name="region_sums",
            call=lambda *args: tuple(af.region_sums(*args)),
            reference=reference_sums,
            samples=samples.inputs,
            large=large_inputs,
            integers=samples.exact_inputs,
            gradients_of=(0,),
            outputs=(0, 1, 3, 4, 5, 6),
            small=("tiny-contiguous", "tiny_one_channel-reversed", "tiny_three_classes-channels_last"),
            few=(
                "two_classes-channels_last",
                "two_classes-right",
                "one_channel-reversed",
                "one_channel-wrong",
                "five_classes-expanded",
                "volume-contiguous",
                "no_space-contiguous",
                "empty_batch-contiguous",
                "no_pixels-contiguous",
                "nan",
            ),
            errors=errors(af.region_sums, INPUT_ERRORS),
        )
    )
)
globals().update(
    contract(
        Op(
            name="region_loss",
            call=call_loss,
            reference=lambda *args: reference.region_loss(*args)[0],
            samples=samples.loss_inputs,
            large=large_loss_inputs,
            integers=samples.exact_loss_inputs,
            gradients_of=(0,),
            small=(
                *(f"tiny_three_classes-channels_last-{kind}" for kind in samples.OPTIONS),
                "tiny-contiguous-focal",
                "tiny_one_channel-reversed-focal",
            ),
            few=(
                "tiny_three_classes-channels_last-focal",
                "tiny_three_classes-channels_last-generalized",
                "tiny-reversed-cross_entropy",
                "tiny_one_channel-contiguous-literal",
                "tiny_three_classes-wrong",
                "empty_batch-contiguous",
                "saturated-tversky",
            ),
            errors=[
                *errors(af.focal_tversky_loss, INPUT_ERRORS, WEIGHT_ERRORS, OPTION_ERRORS),
                ("alpha", lambda: af.tversky_loss(LOGITS, TARGET, alpha=-0.1), ValueError, "alpha"),
                ("beta", lambda: af.tversky_loss(LOGITS, TARGET, beta="0.7"), TypeError, "beta"),
                ("gamma", lambda: af.focal_tversky_loss(LOGITS, TARGET, gamma=0), ValueError, "gamma"),
                ("variant", lambda: af.dice_loss(LOGITS, TARGET, variant="hard"), ValueError, "variant"),
            ],
        )
    )
)
globals().update(
    contract(
        Op(
            name="loss_from_sums",
            call=call_loss_from_sums,
            reference=lambda *args: reference.loss_from_sums(*args),
            samples=samples.sums_inputs,
            integers=samples.exact_sums_inputs,
            gradients_of=(0,),
            dtypes=(torch.float32, torch.float64),
            gradient_dtypes=(torch.float32, torch.float64),
            small=tuple(f"three-{kind}-contiguous" for kind in samples.OPTIONS),
            few=(
                "two-tversky-reversed",
                "three-focal-batch",
                "two-literal-contiguous",
                "three-generalized",
                "none-focal-contiguous",
                "two-cross_entropy",
                "right",
                "wrong",
            ),
            errors=[
                ("not sums", lambda: af.loss_from_sums(SUMS.tp), TypeError, "sums"),
                ("kind", lambda: af.loss_from_sums(SUMS, "jaccard"), ValueError, "kind"),
                ("shape", lambda: af.loss_from_sums(SUMS._replace(fp=SUMS.fp[:1])), ValueError, "sums.fp"),
                ("dtype", lambda: af.loss_from_sums(SUMS._replace(tp=SUMS.tp.half())), TypeError, "sums.tp"),
                ("weight", lambda: af.loss_from_sums(SUMS, weight=[1.0]), ValueError, "weight"),
            ],
        )
    )
)


# ---- hand numbers ---------------------------------------------------------------------------------------

# Four pixels that are surely class 0, 1, 1, 1 by the logits, and are labelled 0, 0, 0, 1:
# class 1 has tp = 1, fp = 2, fn = 0; class 0 has tp = 1, fp = 0, fn = 2.
SURE = 1e4 * torch.tensor([[[-1.0, 1.0, 1.0, 1.0]]])
LABELS = torch.tensor([[0, 0, 0, 1]])


@pytest.mark.triton
def test_known_sums():
    s = af.region_sums(SURE, LABELS)
    assert (s.tp.tolist(), s.fp.tolist(), s.fn.tolist()) == ([[1, 1]], [[0, 2]], [[2, 0]])
    assert (s.sum_p.tolist(), s.sum_g.tolist(), s.sum_p2.tolist()) == ([[1, 3]], [[3, 1]], [[1, 3]])
    assert s.ce.tolist() == [[2e4, 0]]


def test_alpha_weighs_false_positives_and_beta_false_negatives():
    foreground = af.tversky_loss(SURE, LABELS, alpha=0.3, beta=0.7, include_background=False)
    assert foreground.item() == pytest.approx(1 - 1 / (1 + 0.3 * 2), rel=1e-6)
    background = af.tversky_loss(SURE, LABELS, alpha=0.3, beta=0.7, weight=[1, 0])
    assert background.item() == pytest.approx(1 - 1 / (1 + 0.7 * 2), rel=1e-6)


def test_the_exponent_is_one_over_gamma():
    loss = af.focal_tversky_loss(SURE, LABELS, alpha=0.3, beta=0.7, gamma=4 / 3)
    assert loss.item() == pytest.approx((0.6 / 1.6) ** 0.75 + (1.4 / 2.4) ** 0.75, rel=1e-6)
    assert af.focal_tversky_loss(SURE, LABELS, gamma=1.0).item() == af.tversky_loss(SURE, LABELS).item()


@pytest.mark.triton
def test_known_dice():
    assert af.dice_loss(SURE, LABELS).item() == pytest.approx(2 * (1 - 2 / 4), rel=1e-6)
    assert af.dice_loss(SURE, LABELS, variant="literal").item() == pytest.approx(2 * (1 - 1 / 4), rel=1e-6)
    expected = 1 - 2 * (1 / 9 + 1) / ((1 + 3) / 9 + (3 + 1))  # weights 1/3^2 and 1/1^2
    assert af.generalized_dice_loss(SURE, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_generalized_dice_of_an_absent_class_is_near_one():
    logits = torch.tensor([[[0.0, 0.0], [-1.0, -1.0]]])
    assert af.generalized_dice_loss(logits, torch.zeros(1, 2, dtype=torch.int64)).item() > 0.99


def test_soft_dice_is_tversky_with_two_halves():
    logits, target = torch.randn(3, 4, 9, 7), torch.randint(0, 4, (3, 9, 7))
    assert torch.equal(af.dice_loss(logits, target), af.tversky_loss(logits, target, 0.5, 0.5))


@pytest.mark.triton
def test_one_channel_is_softmax_over_zero_and_z():
    z, target = torch.randn(2, 1, 5, 6), torch.rand(2, 5, 6) < 0.3
    pair = torch.cat([torch.zeros_like(z), z], dim=1)
    for one, two in zip(af.region_sums(z, target), af.region_sums(pair, target), strict=True):
        assert torch.equal(one, two)
    by_torch = F.binary_cross_entropy_with_logits(z[:, 0], target.float())
    torch.testing.assert_close(af.cross_entropy_loss(z, target), by_torch)


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("ignore_index", [None, 1, -100, 255])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(classes, ignore_index, weighted):
    logits = (3 * torch.randn(2, classes, 6, 7)).requires_grad_()
    target = torch.randint(0, classes, (2, 6, 7))
    if ignore_index is not None:
        target[torch.rand(target.shape) < 0.3] = ignore_index
    weight = torch.rand(classes) if weighted else None
    ours = af.cross_entropy_loss(logits, target, ignore_index, weight)
    theirs = F.cross_entropy(
        logits, target, weight, ignore_index=-100 if ignore_index is None else ignore_index
    )
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


# ---- edges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_everything_ignored_gives_no_gradient(name, backend):
    logits = torch.randn(2, 2, 4, 5, requires_grad=True)
    with af.use_backend(backend):
        loss = LOSSES[name](logits, torch.full((2, 4, 5), 7), ignore_index=7)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_no_images_give_zero(name, backend):
    with af.use_backend(backend):
        assert LOSSES[name](torch.zeros(0, 2, 4, 5), torch.zeros(0, 4, 5, dtype=torch.uint8)).item() == 0


def edge_inputs(dtype, size=16):
    """Empty and full masks, right, wrong and indifferent, up to logits of 1e4."""
    for label in (0, 1):
        target = torch.full((1, size, size), label, dtype=torch.uint8)
        for scale in (0.0, 1.0, 30.0, 90.0, 1e4):
            for sign in (-1, 1):
                z = torch.full((1, 1, size, size), sign * scale)
                yield z.to(dtype), target
                yield torch.cat([-z, z], 1).to(dtype), target
                yield torch.cat([-z, z, z, 0 * z], 1).to(dtype), target
    mixed = (torch.arange(size * size).view(1, size, size) % 3 == 0).to(torch.uint8)
    for sign in (-1.0, 1.0):
        z = sign * 1e4 * (2 * mixed.float() - 1).unsqueeze(1)
        yield z.to(dtype), mixed
        yield torch.cat([-z, z], 1).to(dtype), mixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_value_and_gradient_are_finite_everywhere(name, dtype, backend):
    for logits, target in edge_inputs(dtype):
        logits.requires_grad_()
        for background in (True, False) if name in REGION_LOSSES else (None,):
            options = {} if background is None else {"include_background": background}
            with af.use_backend(backend):
                loss = LOSSES[name](logits, target, **options)
                (grad,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite() and loss.dtype == torch.float32 and loss >= -1e-6
            assert grad.isfinite().all() and grad.dtype == dtype


def test_a_perfect_prediction_has_loss_and_gradient_zero():
    logits, target = next(
        (z, t) for z, t in edge_inputs(torch.float32) if z.shape[1] == 2 and z[0, 0, 0, 0] == 1e4
    )
    logits.requires_grad_()
    loss = af.focal_tversky_loss(logits, target)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_sums_neither_overflow_nor_stall(dtype):
    """512 x 512 pixels are more than float16 can count, and than bfloat16 can count up to."""
    target = torch.zeros(1, 513, 512, dtype=torch.uint8)
    target[:, :300] = 1
    sums = af.region_sums(torch.zeros(1, 2, 513, 512, dtype=dtype), target)
    assert sums.sum_g.tolist() == [[213 * 512, 300 * 512]]
    assert sums.tp.tolist() == [[213 * 256, 300 * 256]]
    assert sums.sum_p.tolist() == [[513 * 256, 513 * 256]]


def test_confident_predictions_keep_their_digits():
    """fp by subtraction, sum_p - tp, is off by several percent here."""
    target = torch.randint(0, 2, (1, 256, 256), generator=torch.Generator().manual_seed(0))
    logits = torch.stack([-12.0 * (2 * target - 1), 12.0 * (2 * target - 1)], 1).float()
    ours, exact = af.region_sums(logits, target), af.region_sums(logits.double(), target)
    for name in ("fp", "fn", "ce"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(exact, name), rtol=1e-5, atol=0)


def test_an_ignored_nan_stays_out():
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    target[0, 1, 2] = 9
    for name, loss in LOSSES.items():
        results = []
        for value in (0.0, float("nan")):
            logits[0, :, 1, 2] = value
            x = logits.clone().requires_grad_()
            results.append((loss(x, target, ignore_index=9), x))
        (a, xa), (b, xb) = results
        assert torch.equal(a, b), name
        assert torch.equal(torch.autograd.grad(a, xa)[0], torch.autograd.grad(b, xb)[0]), name


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=str)
def test_infinite_logits_are_as_in_torchs_softmax(classes, bad):
    """An overflow to +inf makes the loss NaN; it must not pass for a confident prediction."""
    logits = torch.randn(2, classes, 5, 7, generator=torch.Generator().manual_seed(classes))
    logits[1, -1, 2, 3] = bad
    target = torch.arange(70).view(2, 5, 7) % max(classes, 2)
    for name, loss in LOSSES.items():
        found = []
        for backend in ("auto", "reference"):
            x = logits.clone().requires_grad_()
            with af.use_backend(backend):
                value = loss(x, target)
            found.append((value, torch.autograd.grad(value, x)[0]))
        assert found[0][0].isnan() == (bad != -math.inf or found[1][0].isnan()), name
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("op", ["region_sums_backward", "region_loss_backward"])
def test_an_undefined_label_reads_nothing_in_backward(op):
    target = with_label(2**62, (1, 0, 0))
    coefficients = torch.ones(6, 2, 3)
    with pytest.raises(RuntimeError, match=r"target: .* at \[1, 0, 0\]"):
        if op == "region_sums_backward":
            torch.ops.asegnet_fast.region_sums_backward(coefficients, LOGITS, target, None)
        else:
            options = samples.OPTIONS["focal"]
            torch.ops.asegnet_fast.region_loss_backward(
                torch.ones(()), LOGITS, target, coefficients, None, None, *options
            )


@pytest.mark.parametrize("images", [0, 2])
def test_sums_of_no_class_are_refused_at_the_dispatcher(images):
    options = (*samples.OPTIONS["focal"][:-1], False)  # without the background, whose weight would be written
    with pytest.raises(RuntimeError, match=r"sums: expected .* at least one class, got \["):
        torch.ops.asegnet_fast.loss_from_sums(torch.zeros(6, images, 0), None, *options)


@pytest.mark.parametrize("layout", samples.LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 2, 5, 6), (2, 3, 4, 5, 2)], ids=str)
def test_the_gradient_has_the_layout_of_the_logits(shape, layout):
    logits = samples.lay_out(torch.randn(shape), layout).requires_grad_()
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    (grad,) = torch.autograd.grad(af.dice_loss(logits, target), logits)
    assert grad.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_of_every_loss_agree_with_the_kernels_derivatives(name):
    g = torch.Generator().manual_seed(6)
    z = torch.randn((2, 3, 3, 4), generator=g, dtype=torch.float64)
    direction = torch.randn(z.shape, generator=g, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 3, 4), generator=g)
    loss = lambda z: LOSSES[name](z, target, ignore_index=1)  # noqa: E731
    leaf = z.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    (curvature,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    slope = (gradient * direction).sum()
    assert gradient.any() and curvature.any()
    pairs = [
        (torch.func.grad(loss)(z), gradient),
        (torch.func.vjp(loss, z)[1](torch.ones((), dtype=z.dtype))[0], gradient),
        (torch.func.jacfwd(loss)(z), gradient),
        (torch.func.jvp(loss, (z,), (direction,))[1], slope),
        (torch.func.jvp(torch.func.grad(loss), (z,), (direction,))[1], curvature),
        ((torch.func.hessian(loss)(z) * direction).sum((-4, -3, -2, -1)), curvature),
        (torch.func.vmap(loss)(torch.stack([z, z + direction]))[1], loss(z + direction)),
    ]
    for transformed, expected in pairs:
        torch.testing.assert_close(transformed, expected.detach(), rtol=1e-9, atol=1e-11)


# ---- sums added over processes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_sums_of_two_halves_give_the_loss_of_the_whole_batch(name):
    logits = torch.randn(4, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (4, 8, 9))
    options = {"reduce_over": "batch"} if name in REGION_LOSSES else {}
    whole = LOSSES[name](logits, target, **options)
    halves = [af.region_sums(logits[i : i + 2], target[i : i + 2]) for i in (0, 2)]
    added = tversky_op.RegionSums(*(a + b for a, b in zip(*halves, strict=True)))
    kind, kwargs = {
        "dice": ("tversky", {"alpha": 0.5, "beta": 0.5}),
        "literal": ("literal_dice", {}),
        "generalized_dice": ("generalized_dice", {"eps": tversky_op.EPS_GENERALIZED_DICE}),
        "tversky": ("tversky", {}),
        "focal_tversky": ("tversky", {"gamma": tversky_op.GAMMA}),
        "cross_entropy": ("cross_entropy", {}),
    }[name]
    parts = af.loss_from_sums(added, kind, reduce_over="batch", **kwargs)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (parts, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_the_written_out_coefficients_are_the_derivative():
    for name, (sums, weight, *options) in samples.sums_inputs(torch.float64):
        if name.startswith("two"):
            continue  # its absent class has u = 0, where the slope is a definition
        sums.requires_grad_()
        (derivative,) = torch.autograd.grad(reference.loss_from_sums(sums, weight, *options), sums)
        torch.testing.assert_close(reference.loss_coefficients(sums, weight, *options), derivative)
        _, native = torch.ops.asegnet_fast.loss_from_sums(sums.detach(), weight, *options)
        torch.testing.assert_close(native, derivative)


# ---- properties -----------------------------------------------------------------------------------------


@st.composite
def problems(draw, extreme=False):
    spatial = draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    images, channels = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((1e-4, 1.0, 40.0, 1e3, 1e4) if extreme else (0.1, 1.0, 5.0)))
    logits = (scale * torch.randn(images, channels, *spatial, generator=g)).to(dtype)
    classes = max(channels, 2)
    kinds = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes))
    target = torch.tensor(kinds)[torch.randint(0, len(kinds), (images, *spatial), generator=g)]
    if draw(st.booleans()):
        logits = samples.lay_out(logits, draw(st.sampled_from(samples.LAYOUTS)))
    elif draw(st.booleans()):
        logits = arranged(logits, *draw(arrangements(logits.dim())))
    target = target.to(
        draw(st.sampled_from((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)))
    )
    return logits, arranged(target, *draw(arrangements(target.dim())))


@settings(max_examples=examples(120, 5000), deadline=None)
@given(problems(extreme=True), st.sampled_from(sorted(LOSSES)))
def test_finite_and_bounded_for_extreme_logits(problem, name):
    logits, target = problem
    logits = logits.clone().requires_grad_()
    loss = LOSSES[name](logits, target)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all()
    classes = max(logits.shape[1], 2)
    if name in REGION_LOSSES:
        assert -1e-5 <= loss <= (1 if name == "generalized_dice" else classes) + 1e-5
    else:
        assert loss >= 0


#: Gradients of a saturated, right prediction: generalised Dice has them as differences of float32 quotients near 1.
_VANISHING = 1e-9


@pytest.mark.triton
@pytest.mark.kernels
@settings(max_examples=examples(80, 5000), deadline=None)
@given(problems(), st.sampled_from(sorted(samples.OPTIONS)), st.booleans(), st.booleans())
def test_any_shape_and_layout(problem, kind, weighted, ignoring):
    """Loss, sums and gradients against the reference in float64, for logits and labels anywhere in memory."""
    logits, target = problem
    weight = samples.class_weights(max(logits.shape[1], 2), logits.dtype, "cpu") if weighted else None
    ignore_index = 0 if ignoring else None
    found = []
    for loss, sums, z in (
        (call_loss, lambda *a: tuple(af.region_sums(*a)), logits),
        (lambda *a: reference.region_loss(*a)[0], reference_sums, logits),
        (lambda *a: reference.region_loss(*a)[0], reference_sums, logits.double()),
    ):
        z = z.detach().requires_grad_()
        value = loss(
            z,
            target,
            None if weight is None else weight.to(reference.sums_dtype(z.dtype)),
            ignore_index,
            *samples.OPTIONS[kind],
        )
        found.append((value, *sums(z, target, ignore_index), torch.autograd.grad(value, z)[0]))
    for i, (ours, plain, exact) in enumerate(zip(*found, strict=True)):
        if ours.dtype == torch.float64:
            # Autograd of the reference subtracts nearly equal terms: of float64 it keeps fewer digits than the kernel.
            scale = float(exact.detach().abs().max()) if exact.numel() else 0.0
            torch.testing.assert_close(ours, exact, rtol=0, atol=1e-8 * scale)
        elif i == 0:  # most losses are a difference from 1, in whose size their error is
            off = abs(float(ours.detach()) - float(exact.detach()))
            assert off <= tolerances.LOSS_VALUE[logits.dtype] * max(1.0, abs(float(exact.detach()))), kind
        elif not (ours.numel() and (ours - exact).abs().max() <= _VANISHING):
            assert_close(ours, exact, plain, ours.dtype, f"{kind}, number {i}")


@settings(max_examples=examples(80, 5000), deadline=None)
@given(problems(), st.integers(0, 2**31))
def test_the_order_of_pixels_does_not_matter(problem, seed):
    logits, target = problem
    flat, labels = logits.double().unsqueeze(-1).flatten(2), target.unsqueeze(-1).flatten(1)
    order = torch.randperm(labels.shape[1], generator=torch.Generator().manual_seed(seed))
    for a, b in zip(
        af.region_sums(flat, labels), af.region_sums(flat[..., order], labels[:, order]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=examples(80, 5000), deadline=None)
@given(problems())
def test_sums_add_up(problem):
    logits, target = problem
    s = af.region_sums(logits.double(), target)
    pixels = target[0].numel()
    torch.testing.assert_close(s.sum_p.sum(1), torch.full_like(s.tp[:, 0], pixels))
    torch.testing.assert_close(s.tp + s.fn, s.sum_g)
    torch.testing.assert_close(s.fp.sum(1), s.fn.sum(1))  # why classes must not be added before the quotient
    assert (s.sum_p2 <= s.sum_p + 1e-12).all()
    assert (s.ce >= 0).all()


@settings(max_examples=examples(80, 5000), deadline=None)
@given(problems(), st.floats(0.1, 8.0), st.sampled_from(sorted({*REGION_LOSSES} - {"generalized_dice"})))
def test_losses_are_linear_in_the_class_weights(problem, factor, name):
    logits, target = problem
    logits, loss = logits.double(), REGION_LOSSES[name]
    classes = max(logits.shape[1], 2)
    single = [loss(logits, target, weight=[float(c == k) for k in range(classes)]) for c in range(classes)]
    weight = [factor * (c + 1) for c in range(classes)]
    total = sum(w * s for w, s in zip(weight, single, strict=True))
    torch.testing.assert_close(loss(logits, target, weight=weight), total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss(logits, target), sum(single), rtol=1e-10, atol=1e-12)
    foreground = loss(logits, target, include_background=False)
    torch.testing.assert_close(foreground, sum(single[1:]), rtol=1e-10, atol=1e-12)


@settings(max_examples=examples(60, 5000), deadline=None)
@given(problems(), st.floats(-50, 50), st.sampled_from(sorted(LOSSES)))
def test_adding_one_number_to_all_logits_changes_nothing(problem, shift, name):
    logits, target = problem
    if logits.shape[1] == 1:
        return
    logits = logits.double()
    a, b = (LOSSES[name](z, target) for z in (logits, logits + shift))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=examples(60, 5000), deadline=None)
@given(problems(), st.integers(2, 4), st.sampled_from(sorted({*LOSSES} - {"generalized_dice"})))
def test_repeating_the_pixels_changes_nothing(problem, times, name):
    """Sums scale with the image, quotients do not (eps aside)."""
    logits, target = problem
    flat, labels = logits.double().unsqueeze(-1).flatten(2), target.unsqueeze(-1).flatten(1)
    options = {"eps": 1e-30} if name in REGION_LOSSES else {}
    once = LOSSES[name](flat, labels, **options)
    repeated = LOSSES[name](flat.repeat(1, 1, times), labels.repeat(1, times), **options)
    torch.testing.assert_close(once, repeated, rtol=1e-10, atol=1e-12)
