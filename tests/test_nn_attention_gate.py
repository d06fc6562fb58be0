"""AttentionGate against the same gate written with plain PyTorch modules."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import asegnet_fast as af


class Twin(nn.Module):
    def __init__(self, in_channels, gating_channels, inter_channels, mode, upsample):
        super().__init__()
        self.w_x = nn.Conv2d(in_channels, inter_channels, 1, bias=False)
        self.w_g = nn.Conv2d(gating_channels, inter_channels, 1)
        self.psi = nn.Conv2d(inter_channels, 1, 1)
        self.mode, self.upsample = mode, upsample

    def forward(self, x, g):
        t, v = self.w_x(x), F.interpolate(self.w_g(g), size=x.shape[-2:], mode=self.upsample)
        alpha = self.psi(F.relu(t + v if self.mode == "additive" else t * v)).sigmoid()
        return alpha * x, alpha


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize("sides", [((6, 10), (3, 5)), ((7, 9), (3, 4)), ((5, 4), (5, 4))], ids=str)
def test_same_outputs_and_gradients_as_the_twin(mode, upsample, sides):
    gate, twin = af.nn.AttentionGate(6, 4, 3, mode, upsample).double(), Twin(6, 4, 3, mode, upsample).double()
    twin.load_state_dict(gate.state_dict())
    x, g = torch.randn(2, 6, *sides[0], dtype=torch.double), torch.randn(2, 4, *sides[1], dtype=torch.double)
    found = []
    for module in (lambda x, g: gate(x, g, return_alpha=True), twin):
        inputs = [t.clone().requires_grad_() for t in (x, g)]
        out, alpha = module(*inputs)
        (out.sin().sum() + alpha.square().sum()).backward()
        found.append([out, alpha, *(t.grad for t in inputs)])
    found[0] += [p.grad for p in gate.parameters()]
    found[1] += [p.grad for p in twin.parameters()]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_state_dict_and_initialisation_are_conv2ds():
    torch.manual_seed(3)
    gate = af.nn.AttentionGate(8, 5)
    torch.manual_seed(3)
    twin = Twin(8, 5, 4, "additive", "bilinear")
    assert list(gate.state_dict()) == ["w_x.weight", "w_g.weight", "w_g.bias", "psi.weight", "psi.bias"]
    for (name, ours), theirs in zip(gate.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert af.nn.AttentionGate(1, 1).w_x.out_channels == 1


def test_copies_and_compiles():
    gate = af.nn.AttentionGate(4, 3, mode="multiplicative")
    x, g = torch.randn(1, 4, 5, 6, requires_grad=True), torch.randn(1, 3, 2, 3)
    out, alpha = gate(x, g, return_alpha=True)
    assert torch.equal(out, gate(x, g)) and alpha.shape == (1, 1, 5, 6)
    out.sum().backward()
    for other in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert torch.equal(other(x, g), out)
    assert torch.equal(torch.compile(gate, fullgraph=True, backend="aot_eager")(x, g), out)
    assert "multiplicative" in repr(gate)


@pytest.mark.parametrize(
    ("arguments", "exception", "name"),
    [
        (("4", 3), TypeError, "in_channels"),
        ((True, 3), TypeError, "in_channels"),
        ((4, 0), ValueError, "gating_channels"),
        ((4, 3, 0), ValueError, "inter_channels"),
        ((4, 3, 2.0), TypeError, "inter_channels"),
        ((4, 3, 2, "add"), ValueError, "mode"),
        ((4, 3, 2, "additive", "bicubic"), ValueError, "upsample"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, exception, name):
    with pytest.raises(exception, match=f"{name}: expected .*, got "):
        af.nn.AttentionGate(*arguments)
