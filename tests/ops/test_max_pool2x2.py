"""max_pool2x2, max_unpool2x2 and max_unpool2d_indices: the contract, torch's own numbers, and known answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.max_pool2x2 import op as pool_op
from asegnet_fast.ops.max_pool2x2 import reference, samples
from tests.examples import examples
from tests.ops.contract import Op, contract
from tests.ops.memory import arranged, arrangements

X = torch.zeros(1, 2, 4, 6)
CODE = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
Y = torch.zeros(1, 2, 2, 3)
INDICES = torch.zeros(1, 2, 2, 3, dtype=torch.int64)


def call_unpool(y, code, height, width):
    return af.max_unpool2x2(y, code, (height, width))


def call_unpool_indices(y, indices, height, width):
    return pool_op.max_unpool2d_indices(y, indices, (height, width))


def distinct(args):
    """No two values closer than a finite difference's step, in the sample's own memory layout."""
    x = args[0]
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(5)).double().view(x.shape)
    return (torch.empty_like(x).copy_(order / 8), *args[1:])


def index_samples(dtype=torch.float32, device="cpu"):
    """Pooled values with torch's indices; those of overlapping windows repeat."""
    for name, (y, code, height, width) in samples.unpool_inputs(dtype, device):
        yield name, (y, af.codes_to_indices(code, (height, width)), height, width)
    x = torch.randint(-9, 9, (2, 3, 7, 9), generator=torch.Generator().manual_seed(3)).to(dtype)
    yield "overlapping", (*F.max_pool2d(x, 3, stride=2, return_indices=True), 7, 9)


def large_inputs(dtype):
    """Rows for several threads; odd sides with ceil_mode and without."""
    g = torch.Generator().manual_seed(4)
    for name, layout in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        x = torch.randn((2, 17, 63, 67), generator=g).to(dtype).contiguous(memory_format=layout)
        yield name, (x, layout == torch.channels_last)


def large_unpool_inputs(dtype):
    for name, (x, ceil_mode) in large_inputs(dtype):
        yield name, (*reference.max_pool2x2(x, ceil_mode), *x.shape[-2:])


def large_index_samples(dtype):
    for name, (y, code, height, width) in large_unpool_inputs(dtype):
        yield name, (y, af.codes_to_indices(code, (height, width)), height, width)


def with_code(value, at=(0, 0, 0, 0)):
    code = CODE.clone()
    code[at] = value
    return code


FEW = ("odd-nchw-ceil", "odd-channels_last", "single_window-strided", "even-expanded", "empty_batch-nchw")
globals().update(
    contract(
        Op(
            name="max_pool2x2",
            call=af.max_pool2x2,
            reference=reference.max_pool2x2,
            samples=samples.inputs,
            large=large_inputs,
            gradients_of=(0,),
            exact=True,
            small=("even-nchw", "odd-channels_last", "odd-nchw-ceil"),
            few=FEW,
            smooth=distinct,
            errors=[
                ("not a tensor", lambda: af.max_pool2x2([1.0]), TypeError, "x"),
                ("integers", lambda: af.max_pool2x2(X.int()), TypeError, "x"),
                ("2-D", lambda: af.max_pool2x2(X[0, 0]), ValueError, "x"),
                ("too low", lambda: af.max_pool2x2(X[:, :, :1]), ValueError, "x"),
                ("no channel", lambda: af.max_pool2x2(X[:, :0]), ValueError, "x"),
                ("sparse", lambda: af.max_pool2x2(X.to_sparse()), TypeError, "x"),
                ("ceil_mode", lambda: af.max_pool2x2(X, "no"), TypeError, "ceil_mode"),
            ],
        )
    )
)
globals().update(
    contract(
        Op(
            name="max_unpool2x2",
            call=call_unpool,
            reference=reference.max_unpool2x2,
            samples=samples.unpool_inputs,
            large=large_unpool_inputs,
            gradients_of=(0,),
            exact=True,
            small=("even-nchw", "odd-channels_last", "odd-nchw-ceil"),
            few=FEW,
            errors=[
                ("code dtype", lambda: af.max_unpool2x2(Y, CODE.int()), TypeError, "code"),
                ("code int64", lambda: af.max_unpool2x2(Y, INDICES), TypeError, "code"),
                ("code shape", lambda: af.max_unpool2x2(Y, CODE[..., :2]), ValueError, "code"),
                ("y dtype", lambda: af.max_unpool2x2(Y.int(), CODE), TypeError, "y"),
                ("size too small", lambda: af.max_unpool2x2(Y, CODE, (2, 6)), ValueError, "output_size"),
                ("size too large", lambda: af.max_unpool2x2(Y, CODE, (4, 8)), ValueError, "output_size"),
                ("size not ints", lambda: af.max_unpool2x2(Y, CODE, ("4", "6")), TypeError, "output_size"),
                ("size one number", lambda: af.max_unpool2x2(Y, CODE, 4), TypeError, "output_size"),
                (
                    "code above 3",
                    lambda: af.max_unpool2x2(Y, with_code(4, (0, 1, 1, 2))),
                    RuntimeError,
                    "code",
                ),
                (
                    "code says where",
                    lambda: af.max_unpool2x2(Y, with_code(255, (0, 1, 1, 2))),
                    RuntimeError,
                    "[0, 1, 1, 2]",
                ),
                (
                    "code below the map",
                    lambda: af.max_unpool2x2(Y, with_code(2, (0, 0, 1, 0)), (3, 6)),
                    RuntimeError,
                    "code",
                ),
                (
                    "code right of the map",
                    lambda: af.max_unpool2x2(Y, with_code(1, (0, 0, 0, 2)), (4, 5)),
                    RuntimeError,
                    "code",
                ),
            ],
        )
    )
)
globals().update(
    contract(
        Op(
            name="max_unpool2d_indices",
            call=call_unpool_indices,
            reference=reference.max_unpool2d_indices,
            samples=index_samples,
            large=large_index_samples,
            gradients_of=(0,),
            exact=True,
            small=("even-nchw", "odd-channels_last"),
            few=(*FEW, "overlapping"),
            errors=[
                ("dtype", lambda: call_unpool_indices(Y, CODE, 4, 6), TypeError, "indices"),
                ("shape", lambda: call_unpool_indices(Y, INDICES[:, :1], 4, 6), ValueError, "indices"),
                ("too large", lambda: call_unpool_indices(Y, INDICES + 24, 4, 6), RuntimeError, "indices"),
                ("negative", lambda: call_unpool_indices(Y, INDICES - 1, 4, 6), RuntimeError, "indices"),
                ("huge", lambda: call_unpool_indices(Y, INDICES + 2**62, 4, 6), RuntimeError, "indices"),
            ],
        )
    )
)


def test_known_answer():
    x = torch.tensor([[1.0, 2.0, 5.0, 5.0, 0.0], [4.0, 3.0, 5.0, 5.0, 0.0], [9.0, 9.0, 9.0, 9.0, 9.0]])[
        None, None
    ]
    y, code = af.max_pool2x2(x)
    assert y.tolist() == [[[[4.0, 5.0]]]]
    assert code.tolist() == [[[[2, 0]]]]
    assert af.max_unpool2x2(y, code, x.shape).tolist() == [
        [[[0, 0, 5, 0, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]]]
    ]
    assert af.max_unpool2x2(y, code, (2, 3)).tolist() == [[[[0, 0, 5], [4, 0, 0]]]]


@pytest.mark.parametrize("bad", [4, 17, 255])
def test_a_bad_code_reads_nothing_in_backward(bad):
    with pytest.raises(RuntimeError, match="code"):
        torch.ops.asegnet_fast.max_unpool2x2_backward(X, with_code(bad))


def test_a_bad_index_reads_nothing_in_backward():
    with pytest.raises(RuntimeError, match="indices"):
        torch.ops.asegnet_fast.max_unpool2d_indices_backward(X, INDICES + 10**12)


def test_unpool_runs_where_torch_refuses():
    torch.use_deterministic_algorithms(True)
    try:
        assert af.max_unpool2x2(Y + 1, CODE).sum() == Y.numel()
    finally:
        torch.use_deterministic_algorithms(False)


# ---- properties -----------------------------------------------------------------------------------------

#: Ties, and what no comparison orders.
AWKWARD = torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 2.5])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def values(shape, dtype, kinds, g):
    """A few awkward values, or numbers among them."""
    few = AWKWARD[torch.randint(0, kinds, shape, generator=g)]
    return torch.where(torch.rand(shape, generator=g) < 0.5, few, torch.randn(shape, generator=g)).to(dtype)


@st.composite
def maps(draw):
    """(values [N, C, H, W] anywhere in memory, generator, draw): small maps, long rows and many channels."""
    low, high = draw(
        st.sampled_from(
            (((1, 1, 1, 1), (3, 8, 9, 9)), ((1, 1, 1, 30), (1, 2, 5, 150)), ((1, 17, 1, 1), (2, 80, 4, 7)))
        )
    )
    shape = [draw(st.integers(a, b)) for a, b in zip(low, high, strict=True)]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype, kinds = draw(st.sampled_from(DTYPES)), draw(st.integers(1, len(AWKWARD)))
    anywhere = lambda t: arranged(t, *draw(arrangements(4)))  # noqa: E731
    return anywhere(values(shape, dtype, kinds, g)), anywhere, g


def bits(t):
    """Equal exactly when every bit is, NaNs of any payload counting as one."""
    return torch.where(t.isnan(), torch.full_like(t, 12345.0), t), t.isnan() | torch.signbit(t)


def assert_same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype
    for a, b in zip(bits(ours), bits(theirs), strict=True):
        assert torch.equal(a, b)


def valid_codes(pooled, full, g):
    """Random positions that lie inside a map of that size."""
    code = torch.randint(0, 4, pooled, generator=g, dtype=torch.uint8)
    rows, columns = 2 * torch.arange(pooled[-2])[:, None], 2 * torch.arange(pooled[-1])
    code = torch.where(rows + (code >> 1) < full[0], code, code & 1)
    return torch.where(columns + (code & 1) < full[1], code, code & 2)


@pytest.mark.triton
@pytest.mark.kernels
@settings(max_examples=examples(150, 5000), deadline=None)
@given(maps(), st.booleans())
def test_every_bit_as_torch(case, ceil_mode):
    x, anywhere, g = case
    ceil_mode = ceil_mode or min(x.shape[-2:]) < 2
    x.requires_grad_()
    y, code = af.max_pool2x2(x, ceil_mode)
    y_torch, indices = F.max_pool2d(x, 2, ceil_mode=ceil_mode, return_indices=True)
    assert_same_bits(y, y_torch)
    assert torch.equal(af.codes_to_indices(code, x.shape), indices)
    assert torch.equal(af.indices_to_codes(indices, x.shape), code)
    grad = anywhere(values(y.shape, y.dtype, len(AWKWARD), g))
    ours, theirs = (torch.autograd.grad(out, x, grad)[0] for out in (y, y_torch))
    # torch adds to a map of zeros, which turns -0.0 into 0.0.
    assert torch.equal(ours.nan_to_num(nan=7e3), theirs.nan_to_num(nan=7e3))
    full = af.max_unpool2x2(anywhere(y.detach()), anywhere(code), x.shape)
    assert_same_bits(full, F.max_unpool2d(y.detach(), indices, 2, output_size=x.shape))


@pytest.mark.triton
@pytest.mark.kernels
@settings(max_examples=examples(100, 5000), deadline=None)
@given(maps(), st.tuples(st.integers(-1, 1), st.integers(-1, 1)))
def test_every_bit_of_an_unpooled_map_as_torch(case, extra):
    """Any codes, and each size that a pooled side may come from."""
    y, anywhere, g = case
    size = [2 * side + more for side, more in zip(y.shape[-2:], extra, strict=True)]
    code = valid_codes(y.shape, size, g)
    indices = af.codes_to_indices(code, size)
    y.requires_grad_()
    ours, theirs = af.max_unpool2x2(y, anywhere(code), size), F.max_unpool2d(y, indices, 2, output_size=size)
    by_indices = pool_op.max_unpool2d_indices(y, anywhere(indices), size)
    assert_same_bits(ours, theirs)
    assert_same_bits(by_indices, theirs)
    grad = anywhere(values(ours.shape, y.dtype, len(AWKWARD), g))
    expected = torch.autograd.grad(theirs, y, grad)[0]
    for out in (ours, by_indices):
        assert_same_bits(torch.autograd.grad(out, y, grad)[0], expected)


@pytest.mark.triton
@pytest.mark.kernels
@settings(max_examples=examples(100, 5000), deadline=None)
@given(maps(), st.tuples(st.integers(1, 9), st.integers(1, 40)))
def test_any_indices(case, size):
    """Indices anywhere in a map of any size, many of them equal: the last one counts, and each gets the gradient."""
    y, anywhere, g = case
    indices = torch.randint(0, size[0] * size[1], y.shape, generator=g)
    y.requires_grad_()
    out = pool_op.max_unpool2d_indices(y, anywhere(indices), size)
    expected = torch.zeros(*y.shape[:2], size[0] * size[1], dtype=y.dtype)
    flat_y, flat_indices = y.detach().flatten(2), indices.flatten(2)
    for i in range(flat_indices.shape[2]):
        expected.scatter_(2, flat_indices[..., i : i + 1], flat_y[..., i : i + 1])
    assert_same_bits(out, expected.view(out.shape))
    grad = anywhere(values(out.shape, y.dtype, len(AWKWARD), g))
    found = torch.autograd.grad(out, y, grad)[0]
    assert_same_bits(found, grad.flatten(2).gather(2, flat_indices).view(y.shape))


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
def test_layout_is_kept(layout):
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=layout)
    y, code = af.max_pool2x2(x)
    full = af.max_unpool2x2(y, code)
    assert all(t.is_contiguous(memory_format=layout) for t in (y, code, full))


def test_without_a_batch():
    x = torch.randn(3, 5, 4)
    y, code = af.max_pool2x2(x)
    assert torch.equal(y, F.max_pool2d(x, 2))
    assert af.max_unpool2x2(y, code, (5, 4)).shape == x.shape


def test_indices_that_do_not_fit_are_refused():
    with pytest.raises(RuntimeError, match="indices"):
        af.indices_to_codes(torch.tensor([[[[0, 1]]]]), (2, 4))
    with pytest.raises(RuntimeError, match="code"):
        af.codes_to_indices(torch.tensor([[[[7]]]], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("size", "error"), [(None, TypeError), ((4,), TypeError), ((4.0, 6.0), TypeError), ((-4, 6), ValueError)]
)
def test_a_wrong_size_for_indices_is_named(size, error):
    with pytest.raises(error, match=r"output_size: expected .*, got "):
        pool_op.max_unpool2d_indices(Y, INDICES, size)


def test_exchange_without_values():
    """No value can be read on the meta device or under vmap; shapes and numbers come all the same."""
    assert af.codes_to_indices(CODE.to("meta")).shape == af.indices_to_codes(INDICES.to("meta")).shape
    indices = torch.func.vmap(af.codes_to_indices)(CODE)
    assert torch.equal(indices, af.codes_to_indices(CODE))
    assert torch.equal(torch.func.vmap(af.indices_to_codes)(indices), CODE)


def slice_of_channels(shape, layout):
    """The middle channels of a wider map, as the gradient of a concatenation is."""
    n, c, h, w = shape
    wide = torch.randn(n, c + 3, h, w, generator=torch.Generator().manual_seed(c))
    return wide.contiguous(memory_format=layout)[:, 2 : 2 + c]


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
@pytest.mark.parametrize("shape", [(2, 1, 6, 4), (2, 3, 7, 5), (1, 16, 1, 7), (3, 2, 5, 1)], ids=str)
def test_a_gradient_that_is_a_slice_of_channels_is_read_where_it_lies(shape, layout):
    part = slice_of_channels(shape, layout)
    _, code = reference.max_pool2x2(part.contiguous(memory_format=layout), True)
    code = code.contiguous(memory_format=layout)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = torch.ops.asegnet_fast.max_unpool2x2_backward(part, code)
    assert torch.equal(result, reference.max_unpool2x2_backward(part, code))
    copies = [e.name for e in profile.events() if e.name in ("aten::clone", "aten::copy_")]
    assert min(shape[1:]) == 1 or not copies


def assert_as_torch(x, ceil_mode=False):
    """Values, codes and both unpool directions, every bit."""
    y, code = af.max_pool2x2(x, ceil_mode)
    y_torch, indices = F.max_pool2d(x, 2, ceil_mode=ceil_mode, return_indices=True)
    assert torch.equal(y, y_torch)
    assert torch.equal(code, af.indices_to_codes(indices, x.shape))
    full = F.max_unpool2d(y, indices, 2, output_size=x.shape[-2:])
    assert torch.equal(af.max_unpool2x2(y, code, x.shape), full)
    gathered = x.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    assert torch.equal(torch.ops.asegnet_fast.max_unpool2x2_backward(x, code), gathered)


LAYOUTS = [torch.contiguous_format, torch.channels_last]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_length_of_a_run(dtype, layout):
    """Whole steps, shorter ones, steps that overlap and single elements, in rows and at the edges of odd maps."""
    for length in range(1, 72):
        shape = (2, length, 3, 5) if layout is torch.channels_last else (2, 2, 3, 2 * length + length % 2)
        x = torch.randint(-3, 4, shape).to(dtype).contiguous(memory_format=layout)
        assert_as_torch(x, ceil_mode=length % 3 == 0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("height", [256, 255], ids=["even", "odd"])
def test_larger_than_the_cache(dtype, layout, height):
    """Outputs that pass by the cache (csrc/common/cache.h), from threads that share planes."""
    shape = (3, 64 * 4 // dtype.itemsize, height, 192)  # 45 MiB moved
    x = torch.randint(-99, 99, shape, dtype=torch.int8).to(dtype).contiguous(memory_format=layout)
    assert_as_torch(x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_storage_offset(dtype, layout):
    for offset in range(1, 9):
        shape = (2, 16, 6, 34)
        storage = torch.randint(-9, 9, (offset + 2 * 16 * 6 * 34,)).to(dtype)
        x = storage[offset:].as_strided(shape, torch.empty(shape, memory_format=layout).stride(), offset)
        assert_as_torch(x)
