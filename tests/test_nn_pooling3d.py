"""The drop-in 3-D modules against torch's, on everything torch takes, and the gate of volumes against its formula."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import asegnet_fast as af

CONFIGURATIONS = [
    {"kernel_size": 2},
    {"kernel_size": (2, 2, 2), "stride": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 2, 2), "stride": (1, 2, 2)},
    {"kernel_size": 2, "dilation": 2},
]
FUSED = CONFIGURATIONS[:2]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 8, 6), (1, 2, 5, 9, 7), (3, 4, 8, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pool_and_unpool_as_torch(config, shape, dtype):
    x = torch.randint(-9, 9, shape).to(dtype)
    ours, theirs = af.nn.MaxPool3d(**config), nn.MaxPool3d(**config)
    assert torch.equal(ours(x), theirs(x)) and repr(ours) == repr(theirs)
    y, positions = af.nn.MaxPool3d(**config, return_indices=True)(x)
    assert torch.equal(y, theirs(x))
    assert positions.dtype == (torch.uint8 if config in FUSED else torch.int64)
    if "dilation" in config or config.get("kernel_size") == 3:
        return  # overlapping windows: what torch's own unpool gives is not defined
    undo = {k: v for k, v in config.items() if k in ("kernel_size", "stride")}
    _, indices = F.max_pool3d(x, **config, return_indices=True)
    expected = F.max_unpool3d(y, indices, **undo, output_size=x.shape[-3:])
    for given in (positions, indices):
        assert torch.equal(af.nn.MaxUnpool3d(**undo)(y, given, output_size=x.shape[-3:]), expected)


def test_codes_of_another_pool_are_refused():
    with pytest.raises(ValueError, match="indices: expected int64 indices"):
        af.nn.MaxUnpool3d(3)(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8))


def test_copies_and_pickles():
    pool = af.nn.MaxPool3d(2, return_indices=True)
    x = torch.randn(1, 2, 4, 4, 4)
    for twin in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert all(torch.equal(a, b) for a, b in zip(twin(x), pool(x), strict=True))


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize("sides", [((4, 6, 5), (4, 6, 5)), ((5, 6, 7), (2, 3, 4))], ids=["same", "coarser"])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last_3d], ids=["ncdhw", "channels_last"]
)
def test_gate_of_volumes(mode, upsample, sides, layout):
    gate = af.nn.AttentionGate(6, 4, 3, mode, upsample, spatial_dims=3).double()
    generator = torch.Generator().manual_seed(0)
    x, g = (
        torch.randn(2, c, *s, dtype=torch.double, generator=generator)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for c, s in zip((6, 4), sides, strict=True)
    )
    up = F.interpolate(gate.w_g(g), size=x.shape[2:], mode={"bilinear": "trilinear"}.get(upsample, upsample))
    t = gate.w_x(x)
    alpha = gate.psi(F.relu(t + up if mode == "additive" else t * up)).sigmoid()
    ours = gate(x, g, return_alpha=True)
    for a, b in zip(ours, (alpha * x, alpha), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    inputs = (x, g, *gate.parameters())
    grads = [torch.autograd.grad((o.sin() + 0.5 * a).sum(), inputs) for o, a in (ours, (alpha * x, alpha))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
