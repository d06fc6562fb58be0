"""BatchNormReLU2d against torch's BatchNorm2d and ReLU: options, state, copies, compile."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import asegnet_fast as af

OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-3},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]


def pair(options, relu=True, channels=5):
    ours, theirs = af.nn.BatchNormReLU2d(channels, **options, relu=relu), nn.BatchNorm2d(channels, **options)
    if theirs.affine:
        nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_as_torch_through_training_and_evaluation(options, relu):
    ours, theirs = pair(options, relu)
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        x = torch.randn(3, 5, 7, 6) * 2 + 1
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        y, z = ours(leaves[0]), theirs(leaves[1])
        z = F.relu(z) if relu else z
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
        g = torch.randn_like(y)
        for a, b in zip(
            torch.autograd.grad(y, [leaves[0], *ours.parameters()], g),
            torch.autograd.grad(z, [leaves[1], *theirs.parameters()], g),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pool_is_of_the_same_map(options):
    ours, _ = pair(options)
    twin = copy.deepcopy(ours)
    x = torch.randn(2, 5, 7, 6)
    y, pooled, code = ours(x, pool=True, return_full=True)
    assert torch.equal(y, twin(x))
    for a, b in zip((pooled, code), af.max_pool2x2(y), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [t.shape for t in ours(x, pool=True)] == [pooled.shape, code.shape]


def test_it_is_a_batch_norm_that_names_its_relu():
    module = af.nn.BatchNormReLU2d(4)
    assert isinstance(module, nn.BatchNorm2d)
    assert repr(module) == repr(nn.BatchNorm2d(4)).replace("Norm2d", "NormReLU2d").replace(
        ")", ", relu=True)"
    )
    module(torch.randn(2, 4, 3, 3))
    module.reset_running_stats()
    assert not module.running_mean.any() and module.num_batches_tracked == 0


def test_copies_and_compile():
    ours, _ = pair({})
    x = torch.randn(2, 5, 7, 6)
    twins = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    twins.append(torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager"))
    expected = ours(x)
    for twin in twins:
        assert torch.equal(twin(x), expected)
        assert torch.equal(twin.running_var, ours.running_var)


def test_one_value_per_channel_and_other_shapes_are_refused():
    module = af.nn.BatchNormReLU2d(5)
    with pytest.raises(ValueError, match="x: expected more than 1 value per channel when training, got"):
        module(torch.zeros(1, 5, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        module(torch.zeros(5, 4, 4))
