"""What only a kernel on a device does: drop what is out of range, and reach beyond 2^31 elements.

Served by Triton: on the CPU in its interpreter (tests/test_triton.py runs that), else on a GPU.
"""

import pytest
import torch

import asegnet_fast as af
from asegnet_fast.ops import _library
from asegnet_fast.ops.max_pool2x2 import op as pool_op
from asegnet_fast.ops.max_pool2x2 import reference

DEVICE = "cpu" if _library.INTERPRETING else "cuda"
pytestmark = pytest.mark.triton if _library.INTERPRETING else pytest.mark.gpu
LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)


@pytest.fixture(autouse=True)
def _by_triton():
    with af.use_backend("triton"):
        yield


@LAYOUTS
@pytest.mark.parametrize("size", [(3, 5), (4, 6), (5, 7)], ids=str)
def test_a_code_out_of_range_is_dropped(layout, size):
    code = torch.tensor([0, 1, 2, 3, 4, 255]).to(torch.uint8).view(1, 1, 2, 3).expand(1, 5, 2, 3)
    code = code.to(DEVICE).contiguous(memory_format=layout)
    y = torch.arange(1.0, 31).view(1, 5, 2, 3).to(DEVICE).contiguous(memory_format=layout)
    rows, columns = torch.arange(2)[:, None] * 2 + (code.cpu() >> 1), torch.arange(3) * 2 + (code.cpu() & 1)
    inside = ((code.cpu() < 4) & (rows < size[0]) & (columns < size[1])).to(DEVICE)
    full = af.max_unpool2x2(y, code, size)
    expected = reference.max_unpool2x2(torch.where(inside, y, 0), torch.where(inside, code, 0), *size)
    assert torch.equal(full, expected)
    grad = torch.ones(1, 5, *size, device=DEVICE)
    back = torch.ops.asegnet_fast.max_unpool2x2_backward.triton(grad, code)
    assert torch.equal(back, inside.to(back.dtype))


def test_an_index_out_of_range_is_dropped():
    indices = torch.tensor([3, -1, 2**40, 3, 24, 0], device=DEVICE).view(1, 1, 2, 3)
    y = torch.arange(1.0, 7, device=DEVICE).view(1, 1, 2, 3)
    out = pool_op.max_unpool2d_indices(y, indices, (4, 6)).flatten()
    assert out.nonzero().flatten().tolist() == [0, 3] and out[[0, 3]].tolist() == [6, 4]
    back = torch.ops.asegnet_fast.max_unpool2d_indices_backward.triton(
        torch.ones(1, 1, 4, 6, device=DEVICE), indices
    )
    assert back.flatten().tolist() == [1, 0, 0, 1, 0, 1]


@LAYOUTS
def test_offsets_beyond_two_to_the_31(layout):
    """Two images that lie further apart than that, in memory that is reserved but never touched."""
    shape, apart = (2, 3, 4, 6), 2**31 + 16
    storage = torch.empty(apart + 72, dtype=torch.bfloat16, device=DEVICE)
    steps = torch.empty(shape, memory_format=layout).stride()
    x = storage.as_strided(shape, (apart, *steps[1:]))
    x.copy_(torch.randn(shape))
    y, code = af.max_pool2x2(x)
    expected = reference.max_pool2x2(x)
    assert torch.equal(y, expected[0]) and torch.equal(code, expected[1])
    back = torch.ops.asegnet_fast.max_unpool2x2_backward.triton(x, code)
    assert torch.equal(back, reference.max_unpool2x2_backward(x, code))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_undefined_label_is_ignored(dtype, channels):
    logits = torch.randn(2, channels, 3, 5, device=DEVICE)
    target = (torch.arange(30, device=DEVICE).view(2, 3, 5) % 5).to(
        dtype
    )  # some labels are beyond the classes
    target[0, 0, 0] = -1 if dtype.is_signed else 255
    ignored = torch.where((target >= 0) & (target < max(channels, 2)), target, 100)
    logits.requires_grad_()
    found = []
    for labels, ignore_index in ((target, None), (ignored, 100)):
        loss = af.focal_tversky_loss(logits, labels, ignore_index=ignore_index)
        sums = af.region_sums(logits, labels, ignore_index)
        found.append((loss, *sums, torch.autograd.grad(loss, logits)[0]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    with af.use_backend("reference"):
        plain = af.focal_tversky_loss(logits, ignored, ignore_index=100)
    torch.testing.assert_close(found[0][0], plain)


def test_confident_sums_keep_their_digits():
    target = torch.arange(20 * 21, device=DEVICE).view(1, 20, 21) % 3 % 2
    logits = torch.stack([-12.0 * (2 * target - 1), 12.0 * (2 * target - 1)], 1).float()
    ours, exact = af.region_sums(logits, target), af.region_sums(logits.double(), target)
    for name in ("fp", "fn", "ce"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(exact, name), rtol=1e-5, atol=0)


def test_a_loss_is_two_launches_and_one(launches):
    logits = torch.randn(2, 3, 40, 41, device=DEVICE, requires_grad=True)
    target = torch.zeros(2, 40, 41, dtype=torch.uint8, device=DEVICE)
    loss = af.focal_tversky_loss(logits, target)
    assert len(launches) == 2
    loss.backward()
    assert len(launches) == 3


@pytest.fixture
def launches(monkeypatch):
    """Collects the kernels that are launched."""
    from triton.runtime import interpreter, jit

    seen = []
    kind = interpreter.InterpretedFunction if _library.INTERPRETING else jit.JITFunction
    run = kind.run

    def watched(self, *args, **options):
        seen.append(self)
        return run(self, *args, **options)

    monkeypatch.setattr(kind, "run", watched)
    return seen
