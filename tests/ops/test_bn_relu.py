"""bn_relu and bn_relu_max_pool2x2: the contract, torch's own numbers, and inputs that spoil a careless sum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.bn_relu import reference, samples
from tests.examples import examples
from tests.ops.contract import Op, contract
from tests.tolerances import RELATIVE, ROUNDOFF

X = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(3)
LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)


def call(x, weight, bias, mean, var, training, eps, relu):
    return af.bn_relu(x, mean, var, weight, bias, training, 0.1, eps, relu)


def plain(x, weight, bias, mean, var, training, eps, relu):
    return reference.plain(x, mean, var, weight, bias, training, 0.1, eps, relu)


def call_pool(x, weight, bias, mean, var, training, eps, relu):
    return af.bn_relu_max_pool2x2(x, mean, var, weight, bias, training, 0.1, eps, relu, return_full=True)[:2]


def plain_pool(x, weight, bias, mean, var, training, eps, relu):
    return reference.plain_max_pool2x2(x, mean, var, weight, bias, training, 0.1, eps, relu)[:2]


def call_pool_alone(x, weight, bias, mean, var, training, eps, relu):
    return af.bn_relu_max_pool2x2(x, mean, var, weight, bias, training, 0.1, eps, relu)[0]


def plain_pool_alone(*args):
    return plain_pool(*args)[1]


def errors_of(function):
    return [
        ("not a tensor", lambda: function([1.0], ONES, ONES), TypeError, "x"),
        ("integers", lambda: function(X.int(), ONES, ONES), TypeError, "x"),
        ("3-D", lambda: function(X[0], ONES, ONES), ValueError, "x"),
        ("sparse", lambda: function(X.to_sparse(), ONES, ONES), TypeError, "x"),
        ("weight's shape", lambda: function(X, ONES, ONES, ONES[:2]), ValueError, "weight"),
        ("weight's dtype", lambda: function(X, ONES, ONES, ONES.double()), TypeError, "weight"),
        ("weight is half", lambda: function(X, ONES, ONES, ONES.half()), TypeError, "weight"),
        ("float for double", lambda: function(X.double(), ONES, ONES), TypeError, "running_mean"),
        ("bias's device", lambda: function(X, ONES, ONES, ONES, ONES.to("meta")), TypeError, "bias"),
        ("one running statistic", lambda: function(X, ONES, None), ValueError, "running_var"),
        ("no running statistics", lambda: function(X, None, None), ValueError, "running_mean"),
        ("training no bool", lambda: function(X, ONES, ONES, training=1), TypeError, "training"),
    ]


FEW = (
    "odd-nchw-train",
    "odd-channels_last-train",
    "odd-strided",
    "even-expanded",
    "empty_batch-channels_last",
)
SMALL = ("even-nchw-train", "odd-channels_last-train", "even-nchw-train-linear", "odd-channels_last")
globals().update(
    contract(
        Op(
            name="bn_relu",
            call=call,
            reference=plain,
            samples=samples.inputs,
            integers=samples.exact_inputs,
            gradients_of=(0, 1, 2),
            small=SMALL,
            few=FEW,
            errors=[
                *errors_of(af.bn_relu),
                (
                    "one value",
                    lambda: af.bn_relu(X[:1, :, :1, :1], ONES, ONES, training=True),
                    ValueError,
                    "more than 1 value",
                ),
            ],
        )
    )
)
for name, function, twin, outputs in (
    ("full", call_pool, plain_pool, (0, 1)),
    ("alone", call_pool_alone, plain_pool_alone, (0,)),
):
    tests = contract(
        Op(
            name="bn_relu_max_pool2x2",
            call=function,
            reference=twin,
            samples=samples.inputs,
            integers=samples.exact_inputs,
            gradients_of=(0, 1, 2),
            outputs=outputs,
            small=SMALL,
            few=FEW,
            gradient_dtypes=(torch.float32, torch.float64),  # halves below: rounding makes ties
            errors=[
                *errors_of(af.bn_relu_max_pool2x2),
                ("too low", lambda: af.bn_relu_max_pool2x2(X[:, :, :1], ONES, ONES), ValueError, "x"),
                (
                    "no channel",
                    lambda: af.bn_relu_max_pool2x2(X[:, :0], ONES[:0], ONES[:0]),
                    ValueError,
                    "x",
                ),
            ],
        )
    )
    globals().update({f"{test}_{name}": body for test, body in tests.items()})


# ---- torch's own numbers ---------------------------------------------------------------------------------


def relative_error(got, exact):
    return ((got.double() - exact.double()).abs().max() / exact.double().abs().max()).item()


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_running_statistics_as_torch(layout, dtype, momentum):
    x = (torch.randn(3, 5, 9, 7, dtype=dtype) * 3 + 1).contiguous(memory_format=layout)
    ours, theirs, pooled = ([torch.rand(5, dtype=dtype) for _ in range(2)] for _ in range(3))
    for a, b, c in zip(ours, theirs, pooled, strict=True):
        b.copy_(a), c.copy_(a)
    af.bn_relu(x, *ours, training=True, momentum=momentum)
    af.bn_relu_max_pool2x2(x, *pooled, training=True, momentum=momentum)
    F.batch_norm(x, *theirs, training=True, momentum=momentum)
    for a, b, c in zip(ours, theirs, pooled, strict=True):
        assert relative_error(a, b) <= RELATIVE[dtype] and torch.equal(a, c)


def test_running_statistics_stay_in_evaluation_and_of_an_empty_batch():
    mean, var = torch.rand(3), torch.rand(3) + 0.5
    before = mean.clone(), var.clone()
    af.bn_relu(X, mean, var)
    af.bn_relu(X[:0], mean, var, training=True)
    af.bn_relu_max_pool2x2(X[:0], mean, var, training=True)
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


@pytest.mark.triton
@LAYOUTS
@pytest.mark.parametrize("mean", [1e3, -1e5])
def test_a_large_mean_leaves_the_variance(layout, mean):
    x = (torch.randn(4, 6, 50, 40) + mean).contiguous(memory_format=layout)
    running = torch.zeros(6), torch.zeros(6)
    y = af.bn_relu(x, *running, training=True, momentum=1.0)
    exact = F.relu(F.batch_norm(x.double(), None, None, training=True))
    # x itself is exact here; what is lost is the last bit of the mean beside x.
    assert (y - exact).abs().max() <= 4 * abs(mean) * torch.finfo(x.dtype).eps
    var = x.double().var((0, 2, 3))
    assert relative_error(running[1], var) <= 1e-6


@pytest.mark.triton
@LAYOUTS
def test_an_outlier_first_leaves_the_variance(layout):
    x = torch.randn(4, 6, 50, 40).contiguous(memory_format=layout)
    x[:, :, 0, 0] = 1e4
    running = torch.zeros(6), torch.zeros(6)
    af.bn_relu(x, *running, training=True, momentum=1.0)
    assert relative_error(running[1], x.double().var((0, 2, 3))) <= 1e-5


@pytest.mark.triton
@LAYOUTS
@pytest.mark.parametrize("training", [True, False])
def test_a_constant_channel_is_its_bias(layout, training):
    x = torch.full((2, 3, 4, 6), 7.25).contiguous(memory_format=layout)
    bias = torch.tensor([-1.0, 0.0, 2.0])
    y = af.bn_relu(x, torch.full((3,), 7.25), ONES.clone(), ONES, bias, training)
    assert torch.equal(y, F.relu(bias)[None, :, None, None].expand_as(y))


@pytest.mark.triton
@LAYOUTS
def test_nan_and_infinity_as_torch(layout):
    x = X.clone()
    x[0, 0, 0, 0], x[1, 1, 2, 3], x[0, 2, 1, 1] = float("nan"), float("inf"), -float("inf")
    x = x.contiguous(memory_format=layout)
    for training in (True, False):
        results, leaves = [], [x.clone().requires_grad_() for _ in range(2)]
        for leaf, function in zip(leaves, (call, plain), strict=True):
            y = function(
                leaf, ONES, ONES / 8, *((None, None) if training else (ONES, ONES)), training, 1e-5, True
            )
            results.append((y.detach(), torch.autograd.grad(y.sum(), leaf)[0]))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@LAYOUTS
def test_no_gradient_where_the_result_is_zero(layout):
    x = torch.tensor([-1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2).contiguous(memory_format=layout).requires_grad_()
    mean, var = torch.zeros(1), torch.ones(1)
    for function in (
        lambda x: af.bn_relu(x, mean, var, eps=0.0),
        lambda x: F.relu(F.batch_norm(x, mean, var, eps=0.0)),
    ):
        (dx,) = torch.autograd.grad(function(x).sum(), x)
        assert dx.flatten().tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@LAYOUTS
def test_half_maps_take_float_parameters(half, layout):
    x = torch.randn(2, 20, 6, 5).to(half).contiguous(memory_format=layout).requires_grad_()
    weight, bias = torch.randn(20, requires_grad=True), torch.randn(20, requires_grad=True)
    running = torch.zeros(20), torch.ones(20)
    y, pooled, _ = af.bn_relu_max_pool2x2(x, *running, weight, bias, training=True, return_full=True)
    assert y.dtype == pooled.dtype == half
    grads = torch.autograd.grad(y.float().square().sum() + pooled.float().sum(), (x, weight, bias))
    assert [g.dtype for g in grads] == [half, torch.float32, torch.float32]
    exact = F.relu(F.batch_norm(x.double(), None, None, weight.double(), bias.double(), training=True))
    assert (y - exact).abs().max() <= exact.abs().max() * torch.finfo(half).eps
    assert relative_error(running[0], 0.1 * x.double().mean((0, 2, 3))) <= 1e-6


@pytest.mark.triton
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_without_weight_or_bias(given, training):
    parameters = [torch.randn(3) if g else None for g in given]
    leaves = [X.clone().requires_grad_() for _ in range(2)]
    found = []
    for leaf, function in zip(leaves, (call, plain), strict=True):
        y = function(
            leaf, *parameters, *((None, None) if training else (ONES / 3, ONES)), training, 1e-5, True
        )
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# ---- the pool --------------------------------------------------------------------------------------------


@st.composite
def maps(draw):
    shape = draw(st.tuples(*(st.integers(low, high) for low, high in ((1, 3), (1, 40), (2, 9), (2, 9)))))
    dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    few = torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 2.5])
    ties = few[torch.randint(0, draw(st.integers(1, 8)), shape, generator=g)]
    x = (ties if draw(st.booleans()) else torch.randn(shape, generator=g)).to(dtype)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    if draw(st.booleans()):
        x = x.transpose(2, 3)
    return x, draw(st.booleans()), draw(st.booleans())


@pytest.mark.triton
@settings(max_examples=examples(150, 5000), deadline=None)
@given(maps())
def test_pool_of_its_own_result_bit_for_bit(case):
    x, training, relu = case
    channels = x.shape[1]
    running = torch.linspace(-1, 1, channels).to(x.dtype), torch.linspace(0.5, 2, channels).to(x.dtype)
    options = (torch.linspace(-2, 2, channels).to(x.dtype), None, training and x[:, 0].numel() > 1)
    y, pooled, code = af.bn_relu_max_pool2x2(x, *running, *options, momentum=0.0, relu=relu, return_full=True)
    assert torch.equal(
        y.nan_to_num(nan=7.0), af.bn_relu(x, *running, *options, momentum=0.0, relu=relu).nan_to_num(nan=7.0)
    )
    alone = af.bn_relu_max_pool2x2(x, *running, *options, momentum=0.0, relu=relu)
    exact = af.max_pool2x2(y)
    for values, positions in (alone, (pooled, code)):
        assert torch.equal(values.nan_to_num(nan=7.0), exact[0].nan_to_num(nan=7.0))
        assert torch.equal(positions, exact[1])


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 6, 8), (2, 16, 7, 5), (1, 40, 35, 64)], ids=str)
def test_gradients_as_of_separate_ops(layout, dtype, shape):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    g = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(shape[1], generator=g), torch.randn(shape[1], generator=g)
    found = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        if fused:
            y, pooled, _ = af.bn_relu_max_pool2x2(
                leaves[0], None, None, *leaves[1:], training=True, return_full=True
            )
        else:
            y = af.bn_relu(leaves[0], None, None, *leaves[1:], training=True)
            pooled, _ = af.max_pool2x2(y)
        found.append(torch.autograd.grad(y.float().sin().sum() + pooled.float().square().sum(), leaves))
    # The separate ops round the sum of both gradients to a half before they sum it up.
    tolerance = RELATIVE.get(dtype) or 2 * ROUNDOFF[dtype]
    for ours, theirs in zip(*found, strict=True):
        assert relative_error(ours, theirs) <= tolerance


def test_only_one_of_both_results_has_a_gradient():
    x = X.double().requires_grad_()
    y, pooled, code = af.bn_relu_max_pool2x2(x, None, None, training=True, return_full=True)
    plain_y, plain_pooled, _ = reference.plain_max_pool2x2(x, None, None, None, None, True, 0.1, 1e-5, True)
    for ours, theirs in ((y, plain_y), (pooled, plain_pooled)):
        a, b = (torch.autograd.grad(t.square().sum(), x, retain_graph=True)[0] for t in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert not code.requires_grad


@LAYOUTS
def test_a_code_out_of_range_gets_no_gradient(layout):
    x = X.contiguous(memory_format=layout)
    code = torch.full((2, 3, 2, 3), 200, dtype=torch.uint8)
    args = (torch.ones(2, 3, 2, 3), None, code, x, ONES, ONES, ONES, ONES, False, 1e-5, True)
    dx, dweight, dbias = torch.ops.asegnet_fast.bn_relu_max_pool2x2_backward(*args)
    assert not dx.any() and not dweight.any() and not dbias.any()


@pytest.mark.parametrize("isolated", ["dy", "mean", "code", "dpooled"])
def test_the_dispatcher_refuses_other_shapes(isolated):
    good = {
        "dpooled": torch.ones(2, 3, 2, 3),
        "dy": X,
        "code": torch.zeros(2, 3, 2, 3, dtype=torch.uint8),
        "x": X,
        "weight": ONES,
        "bias": ONES,
        "mean": ONES,
        "var": ONES,
    }
    bad = good | {isolated: good[isolated][:1]}
    with pytest.raises(RuntimeError, match=rf"{isolated}: expected .*, got "):
        torch.ops.asegnet_fast.bn_relu_max_pool2x2_backward(*bad.values(), True, 1e-5, True)


@LAYOUTS
def test_layout_is_kept(layout):
    x = torch.randn(2, 3, 5, 6).contiguous(memory_format=layout)
    results = (af.bn_relu(x, ONES, ONES), *af.bn_relu_max_pool2x2(x, ONES, ONES, return_full=True))
    assert all(t.is_contiguous(memory_format=layout) for t in results)


@LAYOUTS
def test_an_awkward_number_of_channels(layout):
    """Channels and vectors that come together only after a very long run."""
    x = torch.randn(2, 4099, 3, 2).contiguous(memory_format=layout)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    y, pooled, _ = af.bn_relu_max_pool2x2(leaves[0], None, None, training=True, return_full=True)
    exact, exact_pooled, _ = reference.plain_max_pool2x2(
        leaves[1], None, None, None, None, True, 0.1, 1e-5, True
    )
    grads = [
        torch.autograd.grad(a.sin().sum() + b.square().sum(), leaf)[0]
        for a, b, leaf in ((y, pooled, leaves[0]), (exact, exact_pooled, leaves[1]))
    ]
    for ours, theirs in (
        (y, exact),
        (pooled, exact_pooled),
        grads,
        (af.bn_relu(x, None, None, training=True), exact),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
