"""attention_gate: the contract, torch's resizing at every ratio, and known answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops import _library
from asegnet_fast.ops.attention_gate import op as gate_op
from asegnet_fast.ops.attention_gate import reference, samples
from tests import tolerances
from tests.examples import examples
from tests.ops.contract import Op, assert_close, contract, sample
from tests.ops.memory import arranged, arrangements

X = torch.zeros(2, 3, 6, 4)
G = torch.zeros(2, 5, 3, 2)
WEIGHTS = (torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(2), torch.zeros(2), torch.zeros(1))
NAMES = ("x", "g", "w_x", "w_g", "b_g", "w_psi", "b_psi")
ARGS = (X, G, *WEIGHTS)


def wrong(position, value):
    """A call with one wrong argument."""
    args = list(ARGS)
    args[position] = value
    return lambda: af.attention_gate(*args)


def away_from_the_kink(args):
    """b_g moved, channel by channel, to the middle of the widest gap: no s (multiplicative: no factor) is near 0."""
    x, g, w_x, w_g, b_g, w_psi, b_psi, mode, upsample = args
    t, v = reference.pre_activations(x, g, w_x, w_g, torch.zeros_like(b_g), upsample == "nearest")
    values = (t + v if mode == "additive" else v).transpose(0, 1).flatten(1).sort().values
    gaps, at = values.diff().max(1, keepdim=True)
    return x, g, w_x, w_g, -(values.gather(1, at) + gaps / 2)[:, 0], w_psi, b_psi, mode, upsample


def large_inputs(dtype):
    """Rows for several threads, and several chunks of them."""
    g = torch.Generator().manual_seed(4)
    for mode, layout in zip(gate_op.MODES, ("nchw", "channels_last"), strict=True):
        x = samples.feature_map((2, 19, 66, 70), layout, dtype, "cpu", g)
        gating = samples.feature_map((2, 16, 33, 35), layout, dtype, "cpu", g)
        yield mode, (x, gating, *(w.to(dtype) for w in samples.weights(19, 16, 9, g)), mode, "bilinear")


def autocast_casts_everything():
    args = sample(GATE, "half-channels_last")
    expected = reference.attention_gate(*(a.bfloat16() for a in args[:7]), *args[7:])
    mixed = (args[0], args[1].bfloat16(), *args[2:])
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            results = af.attention_gate(*mixed)
            with af.use_backend("reference"):
                plain = af.attention_gate(*mixed)
        assert [r.dtype for r in (*results, *plain)] == [dtype] * 4
        for ours, theirs in zip(results, expected, strict=True):
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=0.02)
    leaf = args[0].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = af.attention_gate(leaf, *args[1:])
    out.float().sum().backward()
    assert leaf.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):  # float64 stays
        assert af.attention_gate(*(a.double() for a in args[:7]))[0].dtype == torch.float64
        with pytest.raises(TypeError, match="g: expected the dtype of x"):
            af.attention_gate(args[0], args[1].double(), *args[2:])


GATE = Op(
    name="attention_gate",
    call=af.attention_gate,
    reference=reference.attention_gate,
    samples=samples.inputs,
    large=large_inputs,
    integers=samples.integers,
    gradients_of=tuple(range(7)),
    outputs=(0, 1),
    small=("tiny", "tiny-multiplicative"),
    few=(
        "tiny",
        "half-channels_last",
        "odd-ratio-multiplicative",
        "nearest-multiplicative",
        "sliced",
        "no-row",
    ),
    smooth=away_from_the_kink,
    autocast=autocast_casts_everything,
    errors=[
        *((f"{n} not a tensor", wrong(i, 1.0), TypeError, n) for i, n in enumerate(NAMES)),
        *(
            (f"{n} integers", wrong(i, a.int()), TypeError, n)
            for i, (n, a) in enumerate(zip(NAMES, ARGS, strict=True))
        ),
        *((f"{n} dtype", wrong(i, ARGS[i].double()), TypeError, n) for i, n in enumerate(NAMES[1:], 1)),
        *((f"{n} device", wrong(i, ARGS[i].to("meta")), TypeError, n) for i, n in enumerate(NAMES[1:], 1)),
        *((f"{n} sparse", wrong(i, ARGS[i].to_sparse()), TypeError, n) for i, n in enumerate(NAMES)),
        ("x 3-D", wrong(0, X[0]), ValueError, "x"),
        ("x no channel", wrong(0, X[:, :0]), ValueError, "x"),
        ("g 3-D", wrong(1, G[0]), ValueError, "g"),
        ("g no channel", wrong(1, G[:, :0]), ValueError, "g"),
        ("g batch", wrong(1, G[:1]), ValueError, "g"),
        ("g taller", wrong(1, torch.zeros(2, 5, 7, 2)), ValueError, "g"),
        ("g wider", wrong(1, torch.zeros(2, 5, 3, 5)), ValueError, "g"),
        ("g without pixels", wrong(1, torch.zeros(2, 5, 0, 2)), ValueError, "g"),
        ("w_x channels", wrong(2, torch.zeros(2, 5)), ValueError, "w_x"),
        ("w_x kernel", wrong(2, torch.zeros(2, 3, 1, 2)), ValueError, "w_x"),
        ("w_x no row", wrong(2, torch.zeros(0, 3)), ValueError, "w_x"),
        ("w_g channels", wrong(3, torch.zeros(2, 3)), ValueError, "w_g"),
        ("w_g rows", wrong(3, torch.zeros(3, 5)), ValueError, "w_g"),
        ("b_g length", wrong(4, torch.zeros(3)), ValueError, "b_g"),
        ("w_psi length", wrong(5, torch.zeros(3)), ValueError, "w_psi"),
        ("w_psi shape", wrong(5, torch.zeros(2, 1)), ValueError, "w_psi"),
        ("b_psi length", wrong(6, torch.zeros(2)), ValueError, "b_psi"),
        ("mode", lambda: af.attention_gate(*ARGS, mode="add"), ValueError, "mode"),
        ("upsample", lambda: af.attention_gate(*ARGS, upsample="bicubic"), ValueError, "upsample"),
    ],
)
globals().update(contract(GATE))


def test_known_answer():
    # s = relu(2 x + up(g)) with up(g) = 0, 1, 3, 4 along the row; logits s - 4; alpha a half where s = 4.
    x = torch.tensor([2.0, -3.0, 0.5, 0.0]).view(1, 1, 1, 4)
    g = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    two, one = torch.tensor([[2.0]]), torch.tensor([1.0])
    out, alpha = af.attention_gate(x, g, two, one[None], 0 * one, one, -4 * one)
    logits = torch.tensor([0.0, -4.0, 0.0, 0.0]).view(1, 1, 1, 4)
    assert torch.equal(alpha, logits.sigmoid())
    assert torch.equal(out, alpha * x)
    product, _ = af.attention_gate(x, g, two, one[None], 0 * one, one, -3 * one, mode="multiplicative")
    assert torch.equal(product, x * torch.tensor([-3.0, -3.0, 0.0, -3.0]).sigmoid())


def resized(coarse, fine, upsample, dtype):
    """The op's own resizing, read off alpha = sigmoid(up(g)): w_x = 0, every other weight 1."""
    g = torch.randn(1, 1, 1, coarse, dtype=dtype) + 6
    zero, one = torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    x = torch.zeros(1, 1, 1, fine, dtype=dtype)
    _, alpha = af.attention_gate(x, g, zero, one, zero[0], one[0], -6 * one[0], upsample=upsample)
    options = {"align_corners": False} if upsample == "bilinear" else {}
    return alpha, (F.interpolate(g, size=(1, fine), mode=upsample, **options) - 6).sigmoid()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_nearest_picks_what_torch_picks_at_every_ratio(dtype):
    for fine in range(1, 50):
        for coarse in range(1, fine + 1):
            ours, theirs = resized(coarse, fine, "nearest", dtype)
            torch.testing.assert_close(ours, theirs, msg=f"{coarse} -> {fine}")


def test_bilinear_as_torch_at_every_ratio():
    for fine in range(1, 40):
        for coarse in range(1, fine + 1):
            ours, theirs = resized(coarse, fine, "bilinear", torch.float64)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=f"{coarse} -> {fine}")


def test_mask_bits_and_the_plain_kernels():
    """The kernels that serve devices without one of their own: same results, same strides, same saved bits."""
    for name, args in samples.inputs(torch.float64):
        flags = (args[7] == "multiplicative", args[8] == "nearest")
        ours = gate_op._forward(*args[:7], *flags)
        plain = gate_op._reference_forward(*args[:7], *flags)
        assert torch.equal(ours[3], plain[3]), name
        grads = [torch.randn_like(t) for t in ours[:2]]
        ours = (*ours, *gate_op._backward(*grads, *args[:7], ours[1], ours[3], *flags))
        plain = (*plain, *gate_op._reference_backward(*grads, *args[:7], plain[1], plain[3], *flags))
        for a, b in zip(ours, plain, strict=True):
            assert a.stride() == b.stride() and a.dtype == b.dtype, name
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
def test_layout_is_kept(layout):
    x, g = (
        torch.randn(s).contiguous(memory_format=layout).requires_grad_() for s in ((2, 3, 6, 4), (2, 5, 3, 2))
    )
    out, alpha = af.attention_gate(x, g, *WEIGHTS)
    out.sum().backward()
    assert all(t.is_contiguous(memory_format=layout) for t in (out, x.grad, g.grad))
    assert alpha.shape == (2, 1, 6, 4)


def test_only_some_inputs_need_a_gradient_and_only_one_output_is_used():
    args = sample(GATE, "odd-ratio", torch.float64)
    for wanted in range(7):
        for output in (0, 1):
            found = []
            for function in (af.attention_gate, reference.attention_gate):
                leaves = [a.clone().requires_grad_(i == wanted) for i, a in enumerate(args[:7])]
                function(*leaves)[output].square().sum().backward()
                assert all((leaf.grad is None) == (i != wanted) for i, leaf in enumerate(leaves))
                found.append(leaves[wanted].grad)
            torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_convolution_shaped_weights():
    args = sample(GATE, "half-bilinear")
    w_x, w_g, b_g, w_psi = args[2:6]
    shaped = (w_x[:, :, None, None], w_g[:, :, None, None], b_g, w_psi[None, :, None, None])
    for a, b in zip(af.attention_gate(*args[:2], *shaped, args[6]), af.attention_gate(*args), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", gate_op.MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("channels", [3, 16])
def test_nan_and_infinity_stay_where_they_are(mode, bad, channels):
    """One bad pixel in x and one in g spoil alpha exactly where they do in the reference."""
    g = torch.Generator().manual_seed(3)
    x, gating = torch.randn(1, channels, 6, 8, generator=g), torch.randn(1, 2, 3, 4, generator=g)
    x[0, 1, 2, 3] = bad
    gating[0, 0, 2, 3] = bad
    weights = [torch.randn(s, generator=g) for s in ((5, channels), (5, 2), (5,), (5,), (1,))]
    ours = af.attention_gate(x, gating, *weights, mode=mode)
    for a, b in zip(ours, reference.attention_gate(x, gating, *weights, mode=mode), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_wrong_shapes_at_the_dispatcher_raise():
    with pytest.raises(RuntimeError, match=r"w_x: expected shape \[2, 3\], got \[2, 4\]"):
        torch.ops.asegnet_fast.attention_gate(X, G, torch.zeros(2, 4), *WEIGHTS[1:], False, False)
    alpha, mask = torch.zeros(2, 1, 6, 4), torch.zeros(2, 6, 4, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="mask"):
        torch.ops.asegnet_fast.attention_gate_backward(X, alpha, *ARGS, alpha, mask, False, False)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_shapes_on_the_meta_device(backend):
    with af.use_backend(backend):
        out, alpha = af.attention_gate(*(a.to("meta") for a in ARGS))
    assert out.shape == X.shape and alpha.shape == (2, 1, 6, 4)


@st.composite
def cases(draw):
    """Arguments of the gate and gradients of its results, each anywhere in memory."""
    n, cx, cg, f = (draw(st.integers(low, high)) for low, high in ((1, 2), (1, 33), (1, 20), (1, 35)))
    fine = draw(st.tuples(st.integers(1, 9), st.integers(1, 80)))
    coarse = tuple(draw(st.integers(1, side)) for side in fine)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16)))
    maps = [torch.randn(shape, generator=g) for shape in ((n, cx, *fine), (n, cg, *coarse))]
    grads = [torch.randn(shape, generator=g) for shape in ((n, cx, *fine), (n, 1, *fine))]
    tensors = [*maps, *samples.weights(cx, cg, f, g), *grads]
    tensors = [arranged(t.to(dtype), *draw(arrangements(t.dim()))) for t in tensors]
    modes = draw(st.sampled_from(gate_op.MODES)), draw(st.sampled_from(gate_op.UPSAMPLES))
    return (*tensors[:7], *modes), tensors[7:]


def results_and_gradients(gate, args, grads):
    leaves = [a.detach().requires_grad_() for a in args[:7]]
    results = gate(*leaves, *args[7:])
    return results, torch.autograd.grad(results, leaves, grads)


@pytest.mark.triton
@pytest.mark.kernels
@settings(max_examples=examples(60, 5000), deadline=None)
@given(cases())
def test_any_shape_and_layout(case):
    args, grads = case
    dtype = args[0].dtype
    if _library.INTERPRETING and dtype == torch.bfloat16:  # to which Triton's interpreter truncates
        return
    wide = (*(a.double() for a in args[:7]), *args[7:])
    results, found = results_and_gradients(af.attention_gate, args, grads)
    plain, plain_found = results_and_gradients(reference.attention_gate, args, grads)
    exact, expected = results_and_gradients(reference.attention_gate, wide, [g.double() for g in grads])
    for a, p, b in zip(results, plain, exact, strict=True):
        assert_close(a, b, p, dtype, "result")
    t, v = reference.pre_activations(*wide[:5], args[8] == "nearest")
    s = t * v if args[7] == "multiplicative" else t + v
    if dtype != torch.float64 and s.abs().min() <= 1e-5:  # so near to the kink, rounding decides the side
        return
    for name, a, p, b in zip(NAMES, found, plain_found, expected, strict=True):
        # Sums with random signs: by norm, against the norm of what is summed.
        scale = b.norm() + 1e-3 * grads[0].double().norm()
        error, own = ((t.double() - b).norm() / scale for t in (a, p))
        allowed = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype)
        if allowed is None:
            allowed = tolerances.HALF_FACTOR * own + tolerances.ROUNDOFF[dtype]
        assert error <= allowed, f"{name}: {error}, allowed {allowed}"
