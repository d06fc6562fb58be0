"""max_pool2x2x2 and max_unpool2x2x2: the contract, torch's own numbers, and known answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.ops.max_pool2x2x2 import reference, samples
from tests.examples import examples
from tests.ops.contract import Op, contract
from tests.ops.memory import arranged, arrangements

X = torch.zeros(1, 2, 4, 6, 2)
CODE = torch.zeros(1, 2, 2, 3, 1, dtype=torch.uint8)
Y = torch.zeros(1, 2, 2, 3, 1)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def call_unpool(y, code, *sides):
    return af.max_unpool2x2x2(y, code, sides)


def distinct(args):
    """No two values closer than a finite difference's step, in the sample's own memory layout."""
    x = args[0]
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(5)).double().view(x.shape)
    return (torch.empty_like(x).copy_(order / 8), *args[1:])


def large_inputs(dtype):
    """Rows for several threads; odd sides with ceil_mode and without."""
    g = torch.Generator().manual_seed(4)
    for name, layout in (("ncdhw", torch.contiguous_format), ("channels_last", torch.channels_last_3d)):
        x = torch.randn((2, 9, 13, 31, 35), generator=g).to(dtype).contiguous(memory_format=layout)
        yield name, (x, layout == torch.channels_last_3d)


def large_unpool_inputs(dtype):
    for name, (x, ceil_mode) in large_inputs(dtype):
        yield name, (*reference.max_pool2x2x2(x, ceil_mode), *x.shape[2:])


def with_code(value, at=(0, 0, 0, 0, 0)):
    code = CODE.clone()
    code[at] = value
    return code


globals().update(
    contract(
        Op(
            name="max_pool2x2x2",
            call=af.max_pool2x2x2,
            reference=reference.max_pool2x2x2,
            samples=samples.inputs,
            large=large_inputs,
            gradients_of=(0,),
            exact=True,
            small=("even-nchw", "odd-channels_last-ceil"),
            smooth=distinct,
            errors=[
                ("not a tensor", lambda: af.max_pool2x2x2([1.0]), TypeError, "x"),
                ("integers", lambda: af.max_pool2x2x2(X.int()), TypeError, "x"),
                ("3-D", lambda: af.max_pool2x2x2(X[0, 0]), ValueError, "x"),
                ("too thin", lambda: af.max_pool2x2x2(X[:, :, :, :, :1]), ValueError, "x"),
                ("no channel", lambda: af.max_pool2x2x2(X[:, :0]), ValueError, "x"),
                ("ceil_mode", lambda: af.max_pool2x2x2(X, "no"), TypeError, "ceil_mode"),
            ],
        )
    )
)
globals().update(
    contract(
        Op(
            name="max_unpool2x2x2",
            call=call_unpool,
            reference=reference.max_unpool2x2x2,
            samples=samples.unpool_inputs,
            large=large_unpool_inputs,
            gradients_of=(0,),
            exact=True,
            small=("even-nchw", "odd-channels_last-ceil"),
            errors=[
                ("code dtype", lambda: af.max_unpool2x2x2(Y, CODE.int()), TypeError, "code"),
                ("code shape", lambda: af.max_unpool2x2x2(Y, CODE[:, :1]), ValueError, "code"),
                ("y dtype", lambda: af.max_unpool2x2x2(Y.int(), CODE), TypeError, "y"),
                (
                    "size too large",
                    lambda: af.max_unpool2x2x2(Y, CODE, (4, 8, 2)),
                    ValueError,
                    "output_size",
                ),
                ("size of 2", lambda: af.max_unpool2x2x2(Y, CODE, (4, 6)), TypeError, "output_size"),
                ("size no ints", lambda: af.max_unpool2x2x2(Y, CODE, "462"), TypeError, "output_size"),
                (
                    "code above 7",
                    lambda: af.max_unpool2x2x2(Y, with_code(8, (0, 1, 1, 2, 0))),
                    RuntimeError,
                    "[0, 1, 1, 2, 0]",
                ),
                (
                    "code behind the map",
                    lambda: af.max_unpool2x2x2(Y, with_code(4, (0, 0, 1, 0, 0)), (3, 6, 2)),
                    RuntimeError,
                    "code",
                ),
                (
                    "code right of the map",
                    lambda: af.max_unpool2x2x2(Y, with_code(1), (4, 6, 1)),
                    RuntimeError,
                    "code",
                ),
            ],
        )
    )
)


def test_known_answer():
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    for code in range(8):
        winner = torch.where(x == code, 9.0, x)
        y, found = af.max_pool2x2x2(winner)
        assert y.item() == 9 and found.item() == code
        assert torch.equal(af.max_unpool2x2x2(y, found, x.shape), torch.where(x == code, 9.0, 0.0))


@pytest.mark.parametrize("bad", [8, 255])
def test_a_bad_code_reads_nothing_in_backward(bad):
    with pytest.raises(RuntimeError, match="code"):
        torch.ops.asegnet_fast.max_unpool2x2x2_backward(X, with_code(bad))


@st.composite
def volumes(draw):
    """(values [N, C, D, H, W] anywhere in memory, generator, draw)."""
    low, high = draw(
        st.sampled_from(
            (
                ((1,) * 5, (2, 4, 5, 5, 7)),
                ((1, 1, 1, 1, 20), (1, 2, 3, 3, 70)),
                ((1, 17, 1, 1, 1), (1, 40, 3, 3, 3)),
            )
        )
    )
    shape = [draw(st.integers(a, b)) for a, b in zip(low, high, strict=True)]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    awkward = torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf")])
    few = awkward[torch.randint(0, draw(st.integers(1, 7)), shape, generator=g)]
    x = torch.where(torch.rand(shape, generator=g) < 0.5, few, torch.randn(shape, generator=g))
    anywhere = lambda t: arranged(t, *draw(arrangements(5)))  # noqa: E731
    return anywhere(x.to(draw(st.sampled_from(DTYPES)))), anywhere


def same(a, b):
    """Equal in every bit, NaNs counting as one."""
    signs = torch.equal(a.isnan() | torch.signbit(a), b.isnan() | torch.signbit(b))
    return signs and torch.equal(a.nan_to_num(nan=7e3), b.nan_to_num(nan=7e3))


@pytest.mark.kernels
@settings(max_examples=examples(100, 5000), deadline=None)
@given(volumes(), st.booleans())
def test_every_bit_as_torch(case, ceil_mode):
    x, anywhere = case
    ceil_mode = ceil_mode or min(x.shape[2:]) < 2
    x.requires_grad_()
    y, code = af.max_pool2x2x2(x, ceil_mode)
    y_torch, indices = F.max_pool3d(x, 2, ceil_mode=ceil_mode, return_indices=True)
    assert same(y, y_torch)
    depth, height, width = x.shape[2:]
    assert torch.equal(reference.indices_of(code, x.shape[2:]), indices)
    grad = anywhere(torch.randn(y.shape).to(y.dtype))
    ours, theirs = (torch.autograd.grad(out, x, grad)[0] for out in (y, y_torch))
    assert torch.equal(ours, theirs)
    full = af.max_unpool2x2x2(anywhere(y.detach()), anywhere(code), x.shape)
    expected = torch.zeros(*x.shape[:2], depth * height * width, dtype=x.dtype)
    expected.scatter_(2, indices.flatten(2), y.detach().flatten(2))
    assert same(full, expected.view(x.shape))
    big = anywhere(torch.randn(x.shape).to(x.dtype))
    gathered = big.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    assert same(torch.ops.asegnet_fast.max_unpool2x2x2_backward(big, anywhere(code)), gathered)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last_3d], ids=["ncdhw", "channels_last"]
)
def test_layout_is_kept(layout):
    x = torch.randn(2, 3, 4, 6, 8).contiguous(memory_format=layout)
    y, code = af.max_pool2x2x2(x)
    assert all(t.is_contiguous(memory_format=layout) for t in (y, code, af.max_unpool2x2x2(y, code)))


def test_without_a_batch():
    x = torch.randn(3, 5, 4, 7)
    y, code = af.max_pool2x2x2(x)
    assert torch.equal(y, F.max_pool3d(x, 2))
    assert af.max_unpool2x2x2(y, code, x.shape).shape == x.shape
