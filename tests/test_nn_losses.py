"""The loss modules: each is its function with the options kept, and cross-entropy is torch's."""

import copy
import pickle

import pytest
import torch
from torch import nn

import asegnet_fast as af

MODULES = {
    "DiceLoss": (af.dice_loss, {"variant": "literal", "eps": 1e-3, "reduce_over": "batch"}),
    "GeneralizedDiceLoss": (af.generalized_dice_loss, {"eps": 1e-3, "include_background": False}),
    "TverskyLoss": (af.tversky_loss, {"alpha": 0.7, "beta": 0.3, "ignore_index": 2}),
    "FocalTverskyLoss": (
        af.focal_tversky_loss,
        {"alpha": 0.6, "beta": 0.4, "gamma": 2.0, "reduce_over": "batch"},
    ),
}


@pytest.fixture
def batch():
    return torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_its_function(name, batch):
    function, options = MODULES[name]
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    make = getattr(af.nn, name)
    assert torch.equal(make()(*batch), function(*batch))
    module = make(**options, weight=weight)
    expected = function(*batch, **options, weight=weight)
    assert torch.equal(module(*batch), expected)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(*batch), expected)
    assert torch.equal(make(**options, weight=weight.tolist())(*batch), expected)
    assert list(module.state_dict()) == ["weight"] and module.double().weight.dtype == torch.float64
    for option, value in options.items():
        assert f"{option}={value!r}" in repr(module)
        assert not torch.equal(make(**{option: value})(*batch), function(*batch)), option


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: af.nn.TverskyLoss(alpha=-1), ValueError, "alpha"),
        (lambda: af.nn.FocalTverskyLoss(gamma=0), ValueError, "gamma"),
        (lambda: af.nn.DiceLoss(variant="hard"), ValueError, "variant"),
        (lambda: af.nn.DiceLoss(reduce_over="pixel"), ValueError, "reduce_over"),
        (lambda: af.nn.GeneralizedDiceLoss(eps="1"), TypeError, "eps"),
        (lambda: af.nn.TverskyLoss(weight="abc"), TypeError, "weight"),
        (lambda: af.nn.TverskyLoss(weight=[1, None]), TypeError, "weight"),
        (lambda: af.nn.DiceLoss(ignore_index="x"), TypeError, "ignore_index"),
    ],
)
def test_wrong_options_are_refused_when_made(make, error, words):
    with pytest.raises(error, match=rf"{words}: expected .*, got "):
        make()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 2},
        {"weight": torch.tensor([0.5, 1.0, 2.0, 3.0])},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"label_smoothing": 0.1},
        {"size_average": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["labels", "probabilities", "no batch", "no space", "one class"])
@pytest.mark.filterwarnings("ignore:size_average")
def test_cross_entropy_is_torchs(options, kind, batch):
    logits, target = batch
    if kind == "probabilities":
        if "ignore_index" in options:
            return  # torch refuses it too
        target = torch.rand(3, 4, 5, 6).softmax(1)
    elif kind == "no batch":
        logits, target = logits[0, :, 0, 0], target[0, 0, 0]
    elif kind == "no space":
        logits, target = logits[:, :, 0, 0], torch.tensor([0, 1, 3])
    elif kind == "one class":
        if "weight" in options or "ignore_index" in options:
            return
        logits, target = logits[:, :1], torch.zeros_like(target)
    results = []
    for module in (af.nn.CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options)):
        x = logits.clone().requires_grad_()
        loss = module(x, target)
        results += [loss, torch.autograd.grad(loss.sum(), x)[0]]
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[3], rtol=1e-5, atol=1e-8)
    assert repr(af.nn.CrossEntropyLoss(**options)) == repr(nn.CrossEntropyLoss(**options))


def test_cross_entropy_leaves_complaints_to_torch(batch):
    with pytest.raises(TypeError, match="target"):
        af.nn.CrossEntropyLoss()(batch[0], None)


def test_cross_entropy_of_ignored_pixels_alone_is_zero(batch):
    logits, target = batch
    logits.requires_grad_()
    loss = af.nn.CrossEntropyLoss()(logits, torch.full_like(target, -100))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


def test_the_losses_train_a_model():
    x = torch.randn(4, 3, 8, 8)
    target = (x[:, 0] > 0).long()
    for name in (*MODULES, "CrossEntropyLoss"):
        model, loss = nn.Conv2d(3, 2, 1), getattr(af.nn, name)()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        first = loss(model(x), target).item()
        for _ in range(20):
            optimiser.zero_grad()
            value = loss(model(x), target)
            value.backward()
            optimiser.step()
        assert value.item() < 0.8 * first, name
