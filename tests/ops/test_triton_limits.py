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
