"""Pool and unpool on every sample that torch's own test suite has for them: values, indices, gradients."""

import inspect
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.fusion import functional as fused

common_methods_invocations = pytest.importorskip("torch.testing._internal.common_methods_invocations")
# Its import forbids the whole process to set torch's backend flags, which other tests do.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

#: Those of `af.nn.functional`, with torch's indices, and those that `asegnet_fast.fuse` puts in.
OURS = {
    "nn": {
        "nn.functional.max_pool2d": partial(af.nn.functional.max_pool2d, index_format="torch"),
        "nn.functional.max_unpool2d": af.nn.functional.max_unpool2d,
    },
    "fuse": {
        "nn.functional.max_pool2d": fused.max_pool2d,
        "nn.functional.max_unpool2d": fused.max_unpool2d,
    },
}
THEIRS = {"nn.functional.max_pool2d": F.max_pool2d, "nn.functional.max_unpool2d": F.max_unpool2d}
#: The normal run takes one sample in eleven, which leaves all of the arguments' kinds.
EVERY = 11


def samples(name, dtype):
    for info in common_methods_invocations.op_db:
        if info.name == name and dtype in info.supported_dtypes("cpu"):
            torch.manual_seed(0)
            yield from info.sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point)


def call(function, sample):
    """Results and the gradient of the input; an error as its kind."""
    x = sample.input.detach().requires_grad_(sample.input.requires_grad)
    try:
        results = function(x, *sample.args, **sample.kwargs)
    except (RuntimeError, ValueError) as error:
        return type(error)
    results = results if isinstance(results, tuple) else (results,)
    gradient = None
    if results[0].requires_grad:
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(results[0], x, torch.randn_like(results[0]))
    return [r.detach() + 0 for r in results], gradient


def check(name, ours, dtype, every):
    checked = 0
    for k, sample in enumerate(samples(name, dtype)):
        if k % every:
            continue
        got, expected = (call(f, sample) for f in (OURS[ours][name], THEIRS[name]))
        what = f"sample {k}: {sample.input.shape} {sample.args} {sample.kwargs}"
        if isinstance(expected, type):
            assert got is expected, what
            continue
        for a, b in zip(got[0], expected[0], strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), what
        assert (got[1] is None) == (expected[1] is None), what
        assert got[1] is None or torch.equal(got[1], expected[1]), what
        checked += 1
    assert checked > 3


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("name", THEIRS)
def test_some_samples(name, ours):
    check(name, ours, torch.float32, EVERY)


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("name", THEIRS)
def test_every_sample(name, ours, dtype):
    check(name, ours, dtype, 1)


def test_the_signatures_are_torchs():
    for name, function in OURS["fuse"].items():
        parameters = list(inspect.signature(function).parameters)
        assert parameters == list(inspect.signature(OURS["nn"][name]).parameters)[: len(parameters)]
