"""The losses of `asegnet_fast.compat` against the libraries whose names they bear, or their formulas in plain code."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from asegnet_fast import compat

SHAPE = (3, 4, 6, 7)


def inputs(channels=SHAPE[1], seed=0, spatial=SHAPE[2:], dtype=torch.float64):
    """Logits [N, C, *spatial] and labels [N, 1, *spatial]; the last class is absent from the first image."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(SHAPE[0], channels, *spatial, generator=generator, dtype=dtype)
    labels = torch.randint(0, max(channels, 2), (SHAPE[0], 1, *spatial), generator=generator)
    labels[0][labels[0] == channels - 1] = 0
    return logits.requires_grad_(), labels


def one_hot(labels, channels):
    return F.one_hot(labels[:, 0], channels).movedim(-1, 1).double()


def kept(target, ignore_index):
    return torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index


def assert_same(ours, theirs, logits, rtol=1e-9):
    """Equal values, and equal gradients for a gradient that is not all ones."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12)
    upstream = torch.linspace(0.5, 1.5, ours.numel(), dtype=torch.float64).reshape(ours.shape)
    grads = [torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=rtol, atol=1e-3 * rtol)


# ---- MONAI ----------------------------------------------------------------------------------------------


def monai_cases():
    shared = [
        {},
        {"include_background": False},
        {"batch": True, "reduction": "sum"},
        {"reduction": "none"},
        {"smooth_nr": 0.5, "smooth_dr": 2.0},
        {"batch": True, "reduction": "none"},
    ]
    own = {
        "DiceLoss": [
            {"squared_pred": True},
            {"jaccard": True},
            {"squared_pred": True, "jaccard": True},
            {"weight": [0.5, 1.0, 2.0, 3.0]},
            {"weight": 2.0},
        ],
        "TverskyLoss": [{"alpha": 0.3, "beta": 0.7}],
        "GeneralizedDiceLoss": [
            {"w_type": "simple"},
            {"w_type": "uniform"},
            {"batch": True, "w_type": "simple"},
        ],
        "DiceCELoss": [
            {"lambda_dice": 0.3, "lambda_ce": 2.0},
            {"weight": torch.tensor([0.5, 1.0, 2.0, 3.0])},
        ],
    }
    for name, more in own.items():
        for options in shared + more:
            if name == "DiceCELoss" and options.get("reduction") == "none":
                continue
            yield name, options


@pytest.mark.parametrize(("name", "options"), list(monai_cases()), ids=lambda v: str(v).replace(" ", ""))
@pytest.mark.parametrize("act", ["softmax", "sigmoid"])
@pytest.mark.parametrize("labels_given", [True, False], ids=["labels", "maps"])
def test_monai(name, options, act, labels_given):
    losses = pytest.importorskip("monai.losses")
    logits, labels = inputs()
    target = labels if labels_given else one_hot(labels, SHAPE[1])
    options = {act: True, "to_onehot_y": labels_given, **options}
    original = getattr(losses, name)(**options).double()
    # MONAI has its one-hot map and the weights of its generalised Dice in float32.
    single = name == "GeneralizedDiceLoss" or (labels_given and options.get("squared_pred"))
    ours = getattr(compat.monai, name)(**options)
    assert_same(ours(logits, target), original(logits, target), logits, 1e-6 if single else 1e-9)


@pytest.mark.filterwarnings("ignore:single channel prediction")
@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss", "GeneralizedDiceLoss", "DiceCELoss"])
def test_monai_one_channel(name):
    losses = pytest.importorskip("monai.losses")
    logits, labels = inputs(1)
    options = {"sigmoid": True, "to_onehot_y": True, "include_background": False}
    if name == "DiceCELoss":
        options |= {"weight": torch.tensor([3.0]), "include_background": True}
    original = getattr(losses, name)(**options).double()(logits, labels.double())
    assert_same(getattr(compat.monai, name)(**options)(logits, labels), original, logits)


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss"])
@pytest.mark.parametrize("ignore_index", [255, 1])
def test_monai_ignored_labels(name, ignore_index):
    losses = pytest.importorskip("monai.losses")
    logits, labels = inputs()
    labels[:, :, :2] = ignore_index
    options = {"softmax": True, "to_onehot_y": True, "ignore_index": ignore_index}
    original = getattr(losses, name)(**options)(logits, labels)
    assert_same(getattr(compat.monai, name)(**options)(logits, labels), original, logits)


def test_monai_three_dimensions():
    losses = pytest.importorskip("monai.losses")
    logits, labels = inputs(spatial=(3, 4, 5))
    options = {"softmax": True, "to_onehot_y": True, "reduction": "none"}
    original = losses.DiceLoss(**options)(logits, labels)
    assert_same(compat.monai.DiceLoss(**options)(logits, labels), original, logits)


# ---- segmentation_models_pytorch ------------------------------------------------------------------------


def smp_plain(
    mode, logits, target, alpha, beta, gamma, smooth, eps, log_loss, classes, weights, ignore_index
):
    """The library's formula with everything stored."""
    p = logits.softmax(1) if mode == "multiclass" else logits.sigmoid()
    if mode == "multiclass":
        keep = kept(target, ignore_index).unsqueeze(1)
        g = one_hot(torch.where(keep, target.unsqueeze(1), 0), logits.shape[1])
    else:
        keep, g = kept(target, ignore_index), target.double()
    p, g = p * keep, g * keep
    axes = (0, 2, 3)
    tp, fp, fn = (p * g).sum(axes), (p * (1 - g)).sum(axes), ((1 - p) * g).sum(axes)
    score = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth).clamp_min(eps)
    loss = -score.clamp_min(eps).log() if log_loss else 1 - score
    loss = loss * (g.sum(axes) > 0)
    weights = torch.ones_like(loss) if weights is None else torch.tensor(weights, dtype=torch.float64)
    if classes is not None:
        loss, weights = loss[classes], weights[classes]
    return ((loss * weights).sum() / weights.sum()) ** gamma


@pytest.mark.parametrize("mode", compat.smp.MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"log_loss": True, "smooth": 1.0},
        {"alpha": 0.3, "beta": 0.7, "gamma": 0.75, "smooth": 0.1},
        {"ignore_index": 9},
        {"classes": [1, 3], "class_weights": [1.0, 2.0, 3.0, 4.0]},
    ],
    ids=lambda o: ",".join(o) or "defaults",
)
def test_smp(mode, options):
    if mode == "binary" and "classes" in options:
        pytest.skip("refused by the original too")
    channels = 1 if mode == "binary" else SHAPE[1]
    logits, labels = inputs(channels)
    target = labels[:, 0] if mode == "multiclass" else labels
    if mode == "multilabel":
        target = one_hot(labels, channels).long()
    if "ignore_index" in options:
        target = target.clone()
        target[..., :3] = 9
    values = {
        "alpha": 0.5,
        "beta": 0.5,
        "gamma": 1.0,
        "smooth": 0.0,
        "eps": 1e-7,
        "log_loss": False,
    } | options
    plain = smp_plain(
        mode,
        logits,
        target,
        *(values[k] for k in ("alpha", "beta", "gamma", "smooth", "eps", "log_loss")),
        values.get("classes"),
        values.get("class_weights"),
        values.get("ignore_index"),
    )
    assert_same(compat.smp.TverskyLoss(mode, **options)(logits, target), plain, logits)
    if not {"alpha", "gamma"} & set(options):
        assert_same(compat.smp.DiceLoss(mode, **options)(logits, target), plain, logits)


def test_smp_jaccard_is_tversky_of_whole_errors():
    logits, labels = inputs()
    ours = compat.smp.JaccardLoss("multiclass")(logits, labels[:, 0])
    assert_same(ours, compat.smp.TverskyLoss("multiclass", alpha=1, beta=1)(logits, labels[:, 0]), logits)


def test_smp_power_of_a_perfect_prediction_has_a_gradient():
    """gamma below 1 at loss 0: the original's gradient is NaN."""
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.stack([torch.full((1, 2, 2), 200.0), torch.full((1, 2, 2), -200.0)], 1).requires_grad_()
    loss = compat.smp.TverskyLoss("multiclass", gamma=0.75)(logits, labels)
    loss.backward()
    assert loss.item() == 0 and bool((logits.grad == 0).all())


# ---- nnU-Net --------------------------------------------------------------------------------------------


def nnunet_plain(p, g, keep, batch_dice, do_bg, smooth):
    axes = ((0,) if batch_dice else ()) + tuple(range(2, p.dim()))
    p, g = p * keep, g * keep
    dc = (2 * (p * g).sum(axes) + smooth) / (p.sum(axes) + g.sum(axes) + smooth).clamp_min(1e-8)
    return -(dc if do_bg else dc[..., 1:]).mean()


@pytest.mark.parametrize(
    ("batch_dice", "do_bg", "smooth", "ignore", "weight"),
    [
        *itertools.product([True, False], [True, False], [0.0, 1.0], [None, 7], [None]),
        (True, False, 1e-5, 7, True),
    ],
)
def test_nnunet_dice_and_cross_entropy(batch_dice, do_bg, smooth, ignore, weight):
    logits, labels = inputs()
    if ignore is not None:
        labels[..., :2] = ignore
    keep = kept(labels, ignore)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weight else None
    dice = nnunet_plain(
        logits.softmax(1), one_hot(torch.where(keep, labels, 0), SHAPE[1]), keep, batch_dice, do_bg, smooth
    )
    ce = F.cross_entropy(logits, labels[:, 0], weight, ignore_index=-100 if ignore is None else ignore)
    ours = compat.nnunet.DC_and_CE_loss(
        {"batch_dice": batch_dice, "do_bg": do_bg, "smooth": smooth},
        {} if weight is None else {"weight": weight},
        weight_ce=0.5,
        weight_dice=2,
        ignore_label=ignore,
    )
    assert_same(ours(logits, labels), 0.5 * ce + 2 * dice, logits)


@pytest.mark.parametrize("use_ignore_label", [False, True])
def test_nnunet_regions(use_ignore_label):
    logits, labels = inputs()
    regions = torch.cat([one_hot(labels, SHAPE[1])[:, :3], (labels > 1).double()], 1)
    keep = torch.ones_like(labels, dtype=torch.bool)
    target = regions
    if use_ignore_label:
        keep[..., :3] = False
        target = torch.cat([regions, (~keep).double()], 1)
    ce = F.binary_cross_entropy_with_logits(logits, regions, reduction="none")
    ce = (ce * keep).sum() / keep.sum() if use_ignore_label else ce.mean()
    dice = nnunet_plain(logits.sigmoid(), regions, keep, False, True, 1.0)
    ours = compat.nnunet.DC_and_BCE_loss({}, {}, use_ignore_label=use_ignore_label)(logits, target)
    assert_same(ours, ce + dice, logits)


def test_nnunet_all_pixels_ignored():
    logits, labels = inputs()
    ours = compat.nnunet.DC_and_CE_loss({}, {}, ignore_label=7)(logits, torch.full_like(labels, 7))
    ours.backward()
    assert ours.item() == -1 and bool((logits.grad == 0).all())


# ---- what all share -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: compat.monai.DiceLoss(), "sigmoid, softmax: expected exactly one"),
        (lambda: compat.monai.DiceLoss(softmax=True, sigmoid=True), "sigmoid, softmax: expected exactly one"),
        (lambda: compat.monai.DiceLoss(softmax=True, soft_label=True), "soft_label: expected False"),
        (lambda: compat.monai.DiceLoss(softmax=True, other_act=torch.tanh), "other_act: expected None"),
        (lambda: compat.monai.DiceLoss(softmax=True, reduction="max"), "reduction: expected 'mean'"),
        (lambda: compat.monai.DiceLoss(softmax=True, weight=[-1.0]), "weight: expected numbers"),
        (lambda: compat.monai.DiceCELoss(softmax=True, label_smoothing=0.1), "label_smoothing: expected 0"),
        (lambda: compat.monai.DiceCELoss(softmax=True, lambda_ce=-1), "lambda_ce: expected"),
        (lambda: compat.smp.DiceLoss("several"), "mode: expected 'binary'"),
        (lambda: compat.smp.DiceLoss("multiclass", from_logits=False), "from_logits: expected True"),
        (lambda: compat.smp.DiceLoss("binary", classes=[0]), "classes: expected None"),
        (lambda: compat.nnunet.SoftDiceLoss(torch.sigmoid), "apply_nonlin: expected 'softmax'"),
        (lambda: compat.nnunet.DC_and_CE_loss({}, {"label_smoothing": 0.1}), "ce_kwargs: expected"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (torch.full(SHAPE, 0.25), "a one-hot map"),
        (torch.ones(SHAPE), "a one-hot map"),
        (torch.zeros(SHAPE), "a one-hot map"),
        (torch.zeros(SHAPE[0], 2, *SHAPE[2:]), r"shape \(3, 4, 6, 7\)"),
    ],
)
def test_targets_that_are_not_one_hot_are_refused(target, said):
    with pytest.raises(ValueError, match=said):
        compat.monai.DiceLoss(softmax=True)(inputs()[0], target)


def test_labels_between_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        compat.monai.DiceLoss(sigmoid=True)(inputs()[0], torch.full(SHAPE, 0.5))


def test_half_precision_sums_do_not_overflow():
    """65,536 pixels are more than float16 can count: the originals give inf or NaN there."""
    logits = torch.zeros(1, 2, 256, 257, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 1, 256, 257, dtype=torch.uint8)
    loss = compat.monai.DiceLoss(softmax=True, to_onehot_y=True)(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and abs(loss.item() - 2 / 3) < 1e-3
    assert bool(logits.grad.isfinite().all())


def test_compiles_whole():
    logits, labels = inputs()
    target = one_hot(labels, SHAPE[1])
    loss = compat.monai.DiceCELoss(softmax=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(logits, target), loss(logits, target), logits)
