"""Losses and batch normalisation over two processes equal one process on the whole batch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import asegnet_fast as af
from tests.processes import WORLD, together
from tests.tolerances import NETWORK, RELATIVE

LOSSES = {
    "dice": lambda **o: af.nn.DiceLoss(**o),
    "dice literal": lambda **o: af.nn.DiceLoss(variant="literal", **o),
    "generalized dice": lambda **o: af.nn.GeneralizedDiceLoss(**o),
    "tversky": lambda **o: af.nn.TverskyLoss(alpha=0.6, **o),
    "focal tversky": lambda **o: af.nn.FocalTverskyLoss(gamma=2.0, **o),
}
# How many images of the batch each process has.
PARTS = [(3, 3), (4, 1), (0, 3)]
WEIGHT = [0.5, 1.0, 2.0]


def make_loss(name, reduce_over, classes=3):
    options = {"weight": torch.tensor(WEIGHT[:classes]), "ignore_index": 2}
    if name == "cross entropy":
        return af.nn.CrossEntropyLoss(**options)
    return LOSSES[name](reduce_over=reduce_over, **options)


def part_of(rank, parts, *tensors):
    start = sum(parts[:rank])
    return [t[start : start + parts[rank]] for t in tensors]


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# ---- losses ---------------------------------------------------------------------------------------------


def loss_of_a_part(rank, name, reduce_over, parts, logits, target):
    logits, target = part_of(rank, parts, logits, target)
    logits = logits.clone().requires_grad_()
    loss = af.nn.SyncLoss(make_loss(name, reduce_over))(logits, target)
    # As DistributedDataParallel does: the gradients' mean over the processes.
    return loss.detach(), torch.autograd.grad(loss, logits)[0] / WORLD


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize(
    ("name", "reduce_over"),
    [(n, r) for n in LOSSES for r in ("image", "batch")] + [("cross entropy", "batch")],
)
def test_a_loss_of_two_processes(name, reduce_over, parts):
    logits = torch.randn(sum(parts), 3, 6, 5)
    # Images of unlike classes, so that a mean of the parts' losses would be another number.
    target = torch.stack([torch.randint(0, 1 + n % 3, (6, 5)) for n in range(len(logits))])
    whole = logits.clone().requires_grad_()
    expected = make_loss(name, reduce_over)(whole, target)
    (gradient,) = torch.autograd.grad(expected, whole)
    found = together(loss_of_a_part, name, reduce_over, parts, logits, target)
    assert torch.equal(found[0][0], found[1][0])
    assert relative_error(found[0][0], expected.detach()) < RELATIVE[torch.float32]
    assert relative_error(torch.cat([g for _, g in found]), gradient) < RELATIVE[torch.float32]


def test_a_loss_of_one_process_and_wrong_ones():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    for loss in (af.nn.DiceLoss(), af.nn.TverskyLoss(reduce_over="batch"), af.nn.CrossEntropyLoss()):
        assert torch.equal(af.nn.SyncLoss(loss)(logits, target), loss(logits, target))
        torch.testing.assert_close(loss.of_sums(af.region_sums(logits, target)), loss(logits, target))
    with pytest.raises(TypeError, match="loss: expected a loss module of"):
        af.nn.SyncLoss(nn.MSELoss())
    with pytest.raises(ValueError, match="loss: expected a CrossEntropyLoss of reduction"):
        af.nn.SyncLoss(af.nn.CrossEntropyLoss(label_smoothing=0.1))


# ---- batch normalisation --------------------------------------------------------------------------------

NORMALISATIONS = {
    "plain": {},
    "no relu": {"relu": False},
    "average, no affine": {"momentum": None, "affine": False},
    "no running statistics": {"track_running_stats": False},
}


def normalisation(options):
    torch.manual_seed(1)
    module = af.nn.BatchNormReLU2d(5, **options)
    if module.affine:
        nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    return module


def normalise(module, x, g, pool, return_full):
    """Results, gradients and buffers of two steps."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        module.zero_grad()
        x.grad = None
        found = module(x, pool=pool, return_full=return_full) if pool else module(x)
        floats = [t for t in (found if pool else (found,)) if t.is_floating_point()]
        sum((t * g[..., : t.shape[-2], : t.shape[-1]]).sum() for t in floats).backward()
    results = [t.detach() for t in (found if pool else (found,))]
    return results, x.grad, [p.grad for p in module.parameters()], list(module.buffers())


def normalise_a_part(rank, options, parts, pool, return_full, backend, x, g):
    module = af.nn.SyncBatchNormReLU2d.convert_sync_batchnorm(normalisation(options))
    with af.use_backend(backend):
        return normalise(module, *part_of(rank, parts, x, g), pool, return_full)


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize(("pool", "return_full"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_batch_normalisation_of_two_processes(name, pool, return_full, parts, backend):
    x = torch.randn(sum(parts), 5, 7, 6) * 2 + 10 * torch.arange(sum(parts))[:, None, None, None]
    x = x.contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(x)
    options = NORMALISATIONS[name]
    results, dx, parameters, buffers = normalise(normalisation(options), x, g, pool, return_full)
    found = together(normalise_a_part, options, parts, pool, return_full, backend, x, g)
    for k, expected in enumerate(results):
        assert relative_error(torch.cat([f[0][k] for f in found]), expected) < RELATIVE[torch.float32]
        assert all(f[0][k].is_contiguous(memory_format=torch.channels_last) for f in found if len(f[0][k]))
    assert relative_error(torch.cat([f[1] for f in found]), dx) < 5 * RELATIVE[torch.float32]
    for k, expected in enumerate(parameters):
        assert relative_error(sum(f[2][k] for f in found), expected) < RELATIVE[torch.float32]
    for k, expected in enumerate(buffers):
        assert torch.equal(found[0][3][k], found[1][3][k])
        assert relative_error(found[0][3][k].float(), expected.float()) < RELATIVE[torch.float32]


def test_conversion_keeps_everything_and_one_process_changes_nothing():
    network = af.models.SegNet(widths=(4, 8), convs=(1, 2))
    twin = copy.deepcopy(network)
    held = list(network.parameters())
    converted = af.nn.SyncBatchNormReLU2d.convert_sync_batchnorm(network)
    kinds = [type(m) for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(kinds) == {af.nn.SyncBatchNormReLU2d} and len(kinds) == 5
    assert all(a is b for a, b in zip(held, converted.parameters(), strict=True))
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(converted(x), twin(x))
    assert all(
        torch.equal(a, b)
        for a, b in zip(converted.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    assert isinstance(
        af.nn.SyncBatchNormReLU2d.convert_sync_batchnorm(af.nn.BatchNormReLU2d(3)), af.nn.SyncBatchNormReLU2d
    )


# ---- a network's step -----------------------------------------------------------------------------------

NETWORKS = {
    "segnet": lambda: af.models.SegNet(widths=(4, 8), convs=(1, 2), final_relu=True),
    "a_segnet": lambda: af.models.ASegNet(widths=(4, 8), convs=(2, 1), final_relu=True),
    "dense": lambda: af.models.ASegNet(widths=(4, 8), convs=(2, 2), final_relu=True, block="dense"),
}


def steps(network, loss_of, x, target, parallel=None):
    """Gradients and state after two steps of SGD."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        optimiser.zero_grad()
        loss = loss_of((parallel or network)(x), target)
        loss.backward()
        optimiser.step()
    return loss.detach(), [p.grad for p in network.parameters()], dict(network.state_dict())


def steps_of_a_part(rank, name, loss, parts, state, x, target):
    network = NETWORKS[name]().double()
    network.load_state_dict(state)
    af.nn.SyncBatchNormReLU2d.convert_sync_batchnorm(network)
    loss_of = af.nn.SyncLoss(make_loss(loss, "batch", classes=2))
    return steps(network, loss_of, *part_of(rank, parts, x, target), DistributedDataParallel(network))


@pytest.mark.parametrize("parts", [(2, 2), (3, 2)], ids=str)
@pytest.mark.parametrize(
    ("name", "loss"), [("segnet", "cross entropy"), ("a_segnet", "focal tversky"), ("dense", "dice")]
)
def test_steps_of_a_network_on_two_processes(name, loss, parts):
    network = NETWORKS[name]().double()
    x, target = torch.randn(sum(parts), 1, 12, 9).double(), torch.randint(0, 2, (sum(parts), 12, 9))
    state = copy.deepcopy(network.state_dict())
    expected = steps(network, make_loss(loss, "batch", classes=2), x, target)
    found = together(steps_of_a_part, name, loss, parts, state, x, target)
    assert relative_error(found[0][0], expected[0]) < NETWORK[torch.float64]
    for key, value in expected[2].items():
        assert torch.equal(found[0][2][key], found[1][2][key]), key
        assert relative_error(found[0][2][key].double(), value.double()) < NETWORK[torch.float64], key
    for a, b in zip(found[0][1], expected[1], strict=True):
        assert (a - b).abs().max() <= NETWORK[torch.float64] * max(g.abs().max() for g in expected[1])
