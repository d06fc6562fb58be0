"""Fused attention gates against the untouched model: numbers and gradients, what is recognised and what is left."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import asegnet_fast as af
from tests import classic_nets, tolerances
from tests.test_fuse_pools import assert_equal, run


def stirred(model):
    """Running statistics and affine parameters that are not 0 and 1."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for t in (m.running_mean, m.running_var, m.weight, m.bias):
                nn.init.uniform_(t, 0.5, 1.5)
    return model


def assert_near(got, expected, dtype=torch.float32):
    scale = max(float(b.abs().max()) for b in expected if b is not None)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
            assert float((a - b).abs().max()) <= tolerances.NETWORK[dtype] * scale


class Plain(nn.Module):
    """No batch normalisation, other names, the other order, functions for modules."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 3, 1, bias=False), nn.Conv2d(5, 3, 1), nn.Conv2d(3, 1, 1)

    def forward(self, skip, gating):
        s = torch.add(self.a(skip), self.b(gating)).relu()
        return torch.mul(F.sigmoid(self.c(s)), skip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gate_in_evaluation_and_training(dtype):
    model = stirred(classic_nets.Gate(5, 4, 3)).to(dtype)
    maps = torch.randn(2, 5, 6, 7, dtype=dtype), torch.randn(2, 4, 6, 7, dtype=dtype)
    fused = copy.deepcopy(model)
    report = af.fuse(fused, maps)
    assert [e.what for e in report.replaced] == ["Gate"] and not report.left
    assert_equal(run(fused, *maps), run(model, *maps))  # in training nothing has changed
    assert_equal(list(fused.state_dict().values()), list(model.state_dict().values()))
    fused.eval(), model.eval()
    assert_near(run(fused, *maps), run(model, *maps), dtype)
    assert torch.equal(fused(x=maps[1], g=maps[0]), fused(*maps))
    af.unfuse(fused)
    assert type(fused) is classic_nets.Gate and set(vars(fused)) == set(vars(model))


def test_gate_without_normalisation_is_fused_in_training():
    model, maps = Plain(), (torch.randn(2, 4, 6, 7), torch.randn(2, 5, 6, 7))
    fused = copy.deepcopy(model)
    report = af.fuse(fused, tuple(m.clone().requires_grad_() for m in maps))
    assert report.replaced[0].detail == "one op" and report.saved.after < report.saved.before
    assert_near(run(fused, *maps), run(model, *maps))


def test_what_is_no_gate_is_left():
    def left(module, reason):
        report = af.fuse(module)
        assert not report.replaced and (reason is None) == (not report.left), str(report)
        assert reason is None or reason in report.left[0].detail

    class Tanh(classic_nets.Gate):
        def forward(self, g, x):
            return x * self.psi(self.relu(self.w_g(g) + self.w_x(x))).tanh()

    class Kept(classic_nets.Gate):
        def forward(self, g, x):
            self.alpha = self.psi(self.relu(self.w_g(g) + self.w_x(x)))
            return x * self.alpha

    class Logged(classic_nets.Gate):
        def forward(self, g, x):
            print(g.shape)
            return x * self.psi(self.relu(self.w_g(g) + self.w_x(x)))

    class Residual(classic_nets.Gate):
        def forward(self, g, x):
            return x + x * self.psi(self.relu(self.w_g(g) + self.w_x(x)))

    class Optional(classic_nets.Gate):
        flag = False

        def __init__(self, *args):
            super().__init__(*args)
            self.flag = True

        def forward(self, g, x):
            return super().forward(g, x) if self.flag else x

    left(Tanh(5, 4, 3), None)
    left(Residual(5, 4, 3), None)
    left(Optional(5, 4, 3), "flag")
    left(classic_nets.GridGate(5, 4, 3), "coarser grid")
    strided = classic_nets.Gate(5, 4, 3)
    strided.w_x[0] = nn.Conv2d(4, 3, 1, stride=2)
    left(strided, "no 1x1 convolution with stride 1")
    left(Kept(5, 4, 3), "keeps alpha")
    left(Logged(5, 4, 3), "uses print")


def test_calls_that_cannot_be_fused_run_as_before():
    model = stirred(classic_nets.Gate(5, 4, 3)).eval()
    fused = copy.deepcopy(model)
    af.fuse(fused)
    g, x = torch.randn(2, 5, 6, 7), torch.randn(2, 4, 6, 7)
    assert_equal(run(fused, g[:1], x), run(model, g[:1], x))  # g is broadcast
    seen = []
    fused.psi.register_forward_hook(lambda m, args, out: seen.append(out))
    assert_equal(run(fused, g, x), run(model, g, x))
    assert len(seen) == 1
    with pytest.raises(TypeError):
        fused(g)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(g, x).dtype == model(g, x).dtype


def test_copies_pickles_and_compile():
    model = stirred(classic_nets.Gate(5, 4, 3)).eval()
    g, x = torch.randn(2, 5, 6, 7), torch.randn(2, 4, 6, 7)
    expected = run(model, g, x)
    af.fuse(model)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in (*others, torch.compile(model, fullgraph=True, backend="aot_eager")):
        assert_near(run(other, g, x), expected)
    assert all(type(o) is type(model) for o in others)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("grid", [False, True], ids=["fine", "grid"])
def test_attention_unet(grid, training):
    model = stirred(classic_nets.AttentionUNet(grid)).double().train(training)
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    fused = copy.deepcopy(model)
    report = af.fuse(fused, x)
    assert report.saved.after < report.saved.before
    assert [e.what for e in report.replaced] == ["F.max_pool2d"] + ([] if grid else ["Gate", "Gate"])
    assert len(report.left) == (2 if grid else 0)
    got, expected = run(fused, x), run(model, x)
    if grid or training:
        assert_equal(got, expected)
    else:
        assert_near(got, expected, torch.float64)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_monai_attention_unet(dimensions):
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.AttentionUnet(dimensions, 1, 2, channels=(4, 8, 16), strides=(2, 2))
    stirred(model).double().eval()
    x = torch.randn(2, 1, *(16,) * dimensions, dtype=torch.float64)
    fused = copy.deepcopy(model)
    report = af.fuse(fused, x)
    blocks = [e for e in (report.replaced if dimensions == 2 else report.left) if e.what == "AttentionBlock"]
    assert len(blocks) == 2
    assert_near(run(fused, x), run(model, x), torch.float64)
    assert_equal(run(fused.train(), x), run(model.train(), x))
