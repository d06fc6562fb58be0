"""Which implementation serves: the report, the choice, the environment's words, and every instruction set."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import asegnet_fast as af
from asegnet_fast import _extension

ROOT = Path(__file__).parent.parent
NATIVE = _extension.absent["cpu"] is None
needs_native = pytest.mark.skipif(not NATIVE, reason="no native CPU library here")

#: Runs every op, forward and backward, natively and by the reference, and prints the largest difference of each.
COMPARE = """
import json, torch
import asegnet_fast as af
from asegnet_fast import _extension
from asegnet_fast.ops.attention_gate import samples as gate
from asegnet_fast.ops.max_pool2x2 import samples as pool
worst = {"isa": _extension.active_isa()}

def results(call, args):
    args = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    outs = call(*args)
    outs = [o for o in (outs if isinstance(outs, tuple) else (outs,))]
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(o.shape, generator=g).to(o.dtype) for o in outs if o.requires_grad]
    found = torch.autograd.grad([o for o in outs if o.requires_grad], leaves, grads, allow_unused=True)
    return [*outs, *[f for f in found if f is not None]]

def compare(name, call, args):
    ours = results(call, args)
    with af.use_backend("reference"):
        plain = results(call, args)
    for a, b in zip(ours, plain, strict=True):
        a, b = a.double().nan_to_num(1, 2, 3), b.double().nan_to_num(1, 2, 3)
        if a.numel():
            worst[name] = max(worst.get(name, 0.0), float((a - b).abs().max() / (1 + b.abs().max())))

torch.manual_seed(0)
for layout in (torch.contiguous_format, torch.channels_last):
    x = torch.randn(2, 37, 9, 23).contiguous(memory_format=layout)
    compare("pool", af.max_pool2x2, (x,))
    y, code = af.max_pool2x2(x)
    compare("unpool", lambda y: af.max_unpool2x2(y, code, x.shape), (y,))
    g = torch.randn(2, 21, 5, 12).contiguous(memory_format=layout)
    weights = (torch.randn(19, 37), torch.randn(19, 21), torch.randn(19), torch.randn(19), torch.randn(1))
    compare("gate", af.attention_gate, (x, g, *weights))
    for c in (1, 2, 3):
        logits = torch.randn(2, c, 19, 23).contiguous(memory_format=layout) * 3
        target = torch.randint(0, max(c, 2), (2, 19, 23))
        compare("loss", lambda z: af.focal_tversky_loss(z, target), (logits,))
    weight, bias = torch.randn(37), torch.randn(37)
    for pool in (False, True):
        def norm(x, weight, bias):
            options = (None, None, weight, bias, True)
            return af.bn_relu_max_pool2x2(x, *options, return_full=True)[:2] if pool else af.bn_relu(x, *options)
        compare("bn_relu", norm, (x, weight, bias))
        if not pool:  # rounding makes ties, and a tie that falls elsewhere moves a gradient
            for half in (x.bfloat16(), x.half()):
                compare("bn_relu half", norm, (half, weight, bias))
print(json.dumps(worst))
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
    )


@needs_native
@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_every_instruction_set_gives_the_references_numbers(isa):
    if isa == "avx512" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("this CPU has no avx512")  # torch would take the word for it, and crash
    done = run(COMPARE, ATEN_CPU_CAPABILITY=isa)
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    if worst.pop("isa") != isa:
        pytest.skip(f"this CPU has no {isa}")
    assert worst["pool"] == worst["unpool"] == 0.0
    assert worst["gate"] < 2e-5 and worst["loss"] < 2e-6, worst
    assert worst["bn_relu"] < 2e-5 and worst["bn_relu half"] < 2e-2, worst


@needs_native
def test_the_report_names_what_serves():
    report = af.backends()
    assert {"bn_relu", "max_pool2x2", "max_unpool2x2", "attention_gate", "region_loss"} <= set(report)
    for op, devices in report.items():
        assert devices["cpu"]["serves"] == "native" and devices["cpu"]["isa"] == _extension.active_isa(), op
        with af.use_backend("reference"):
            assert af.backends()[op]["cpu"]["serves"] == "reference"


def test_a_choice_that_cannot_be_met_raises():
    x = torch.zeros(1, 1, 2, 2)
    with (
        af.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"backend 'triton': expected a Triton kernel .* got none"),
    ):
        af.max_pool2x2(x)
    with (
        af.use_backend("native"),
        pytest.raises(RuntimeError, match=r"backend 'native': expected .* on meta, got none"),
    ):
        af.max_pool2x2(x.to("meta"))
    with (
        pytest.raises(ValueError, match=r"name: expected 'auto' or 'reference' .* got 'fast'"),
        af.use_backend("fast"),
    ):
        pass
    assert af.max_pool2x2(x)[0].shape == (1, 1, 1, 1)


def test_the_environment_chooses():
    show = "import asegnet_fast as af; print(af.backends()['max_pool2x2']['cpu']['serves'])"
    assert run(show, ASEGNET_FAST_BACKEND="reference").stdout.strip() == "reference"
    done = run(show, ASEGNET_FAST_BACKEND="quick")
    assert done.returncode != 0
    assert (
        "ASEGNET_FAST_BACKEND: expected 'auto' or 'reference' or 'native' or 'triton', got 'quick'"
        in done.stderr
    )


def test_import_prints_nothing():
    done = run("import asegnet_fast")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_native
def test_build_information():
    info = _extension.build_info()
    assert info["isas"] and info["torch_target"] == "2.11" and info["compiler"]


class _Seen(TorchDispatchMode):
    """Notes the names of this package's ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "asegnet_fast":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


class _Subclass(torch.Tensor):
    """A tensor that notes what torch functions it meets."""

    met: typing.ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.met.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


def _unpooled(x):
    y, code = af.max_pool2x2(x)
    return af.max_unpool2x2(y.sin(), code, x.shape)


def test_the_short_way_past_the_dispatcher_has_the_dispatchers_gradients():
    """Values, first and second derivatives, with and without what sends a call through the dispatcher."""
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def derivatives():
        leaf = x.clone().requires_grad_()
        z = _unpooled(leaf)
        (first,) = torch.autograd.grad(z.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return z, first, second

    short = derivatives()
    with _Seen() as seen:
        through = derivatives()
    assert "max_pool2x2" in seen.names and "max_unpool2x2_backward" in seen.names
    with af.use_backend("reference"):
        plain = derivatives()
    for a, b, c in zip(short, through, plain, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
    assert short[2].abs().max() > 0


def test_tensor_subclasses_keep_their_torch_function():
    _Subclass.met.clear()
    z = _unpooled(torch.randn(1, 2, 4, 4).as_subclass(_Subclass))
    assert type(z) is _Subclass
    assert any("max_unpool2x2" in str(f) for f in _Subclass.met)


def test_saved_tensor_hooks_see_what_the_short_way_saves():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        af.max_pool2x2(x)
    assert [t.dtype for t in packed] == [torch.uint8]
