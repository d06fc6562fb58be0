"""The drop-in pooling modules and functionals against torch's, on everything torch takes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import asegnet_fast as af

CONFIGURATIONS = [
    {"kernel_size": 2},
    {"kernel_size": (2, 2), "stride": 2},
    {"kernel_size": 2, "stride": (2, 2), "ceil_mode": True},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1)},
    {"kernel_size": 2, "dilation": 2},
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": 1},
    {"kernel_size": 4, "stride": 4, "ceil_mode": True},
]
FUSED = CONFIGURATIONS[:4]
SHAPES = [(2, 3, 8, 6), (1, 2, 9, 7), (3, 8, 5), (0, 3, 8, 8)]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32], ids=str)
def test_pool_as_torch(config, shape, dtype):
    x = torch.randint(-9, 9, shape).to(dtype)
    ours, theirs = af.nn.MaxPool2d(**config), nn.MaxPool2d(**config)
    assert torch.equal(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)
    with_indices = af.nn.MaxPool2d(**config, return_indices=True, index_format="torch")(x)
    expected = nn.MaxPool2d(**config, return_indices=True)(x)
    assert all(torch.equal(a, b) for a, b in zip(with_indices, expected, strict=True))
    y, positions = af.nn.MaxPool2d(**config, return_indices=True)(x)
    assert torch.equal(y, expected[0])
    fused = config in FUSED and dtype.is_floating_point
    assert positions.dtype == (torch.uint8 if fused else torch.int64)


@pytest.mark.parametrize(
    "config",
    [
        {k: v for k, v in c.items() if k in ("kernel_size", "stride", "padding")}
        for c in CONFIGURATIONS
        if "dilation" not in c
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("with_size", [False, True], ids=["default", "output_size"])
def test_unpool_as_torch(config, shape, with_size):
    x = torch.randn(shape)
    y, indices = F.max_pool2d(x, **config, return_indices=True)
    size = (x.shape if x.dim() == 4 else x.shape[-2:]) if with_size else None
    ours, theirs = af.nn.MaxUnpool2d(**config), nn.MaxUnpool2d(**config)
    assert repr(ours) == repr(theirs)
    try:
        expected = theirs(y, indices, size)
    except (ValueError, RuntimeError) as error:
        with pytest.raises(type(error)):
            ours(y, indices, size)
        return
    a, b = (y.clone().requires_grad_() for _ in range(2))
    got, want = ours(a, indices, size), theirs(b, indices, size)
    assert torch.equal(got, expected)
    grad = torch.randn_like(want)
    got.backward(grad)
    want.backward(grad)
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 2, 9, 7)], ids=str)
def test_codes_and_indices_unpool_alike(shape):
    x = torch.randn(shape)
    pool = af.nn.MaxPool2d(2, return_indices=True)
    unpool = af.nn.MaxUnpool2d(2)
    y, code = pool(x)
    indices = af.codes_to_indices(code, x.shape)
    for size in (x.shape, list(x.shape[-2:]), torch.Size(x.shape), (1, 99, *x.shape[-2:])):
        assert torch.equal(unpool(y, code, size), unpool(y, indices, size))
    assert torch.equal(
        unpool(y, code, output_size=x.shape), F.max_unpool2d(y, indices, 2, output_size=x.shape)
    )
    assert torch.equal(unpool(input=y, indices=code, output_size=x.shape), unpool(y, code, x.shape))


def test_cast_codes_are_refused():
    y, code = af.max_pool2x2(torch.randn(1, 2, 8, 8))
    with pytest.raises(RuntimeError, match=r"indices: expected .* got int64 values that are all 0\.\.3"):
        af.nn.MaxUnpool2d(2)(y, code.long())


def test_codes_for_another_kernel_are_refused():
    y, code = af.max_pool2x2(torch.randn(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"indices: expected int64 .* got uint8"):
        af.nn.MaxUnpool2d(3)(y, code)


def test_an_unknown_index_format_is_refused():
    with pytest.raises(ValueError, match="index_format: expected 'code' or 'torch', got 'int'"):
        af.nn.MaxPool2d(2, index_format="int")


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 2), torch.zeros(1, 1, 1, 1), torch.zeros(1, 0, 4, 4)], ids=str
)
def test_what_torch_refuses_is_refused(wrong):
    with pytest.raises((RuntimeError, ValueError)):
        nn.MaxPool2d(2)(wrong)
    with pytest.raises((RuntimeError, ValueError)):
        af.nn.MaxPool2d(2)(wrong)


def test_modules_copy_pickle_and_compile():
    pool, unpool = af.nn.MaxPool2d(2, return_indices=True), af.nn.MaxUnpool2d(2)
    x = torch.randn(1, 3, 7, 5)
    expected = unpool(*pool(x), x.shape)
    for p, u in ((copy.deepcopy(pool), copy.deepcopy(unpool)), pickle.loads(pickle.dumps((pool, unpool)))):
        assert torch.equal(u(*p(x), x.shape), expected)
    compiled = torch.compile(lambda x: unpool(*pool(x), x.shape), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize("dynamic", [None, True])
def test_torch_indices_compile_in_one_graph(dynamic):
    pool = af.nn.MaxPool2d(2, return_indices=True, index_format="torch")
    unpool = af.nn.MaxUnpool2d(2)
    compiled = torch.compile(
        lambda x: unpool(*pool(x), x.shape), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    x = torch.randn(1, 3, 7, 5)
    assert torch.equal(compiled(x), unpool(*pool(x), x.shape))


@pytest.mark.parametrize(("size", "error"), [((4, 12), ValueError), ((8,), TypeError)], ids=str)
def test_a_wrong_size_is_named(size, error):
    y, indices = F.max_pool2d(torch.randn(1, 2, 8, 8), 2, return_indices=True)
    with pytest.raises(error, match=r"output_size: expected .*, got "):
        af.nn.MaxUnpool2d(2)(y, indices, size)


def test_the_module_is_a_torch_module():
    assert isinstance(af.nn.MaxPool2d(2), nn.MaxPool2d)
    assert isinstance(af.nn.MaxUnpool2d(2), nn.MaxUnpool2d)
