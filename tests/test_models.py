"""SegNet and A-SegNet against networks of torch's own modules, loaded from the same state_dict."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import asegnet_fast as af
from asegnet_fast.models import PRESETS, ASegNet, SegNet
from tests.tolerances import HALF_FACTOR, NETWORK

SMALL = {"in_channels": 2, "num_classes": 3, "widths": (6, 8, 10), "convs": (2, 1, 3)}

# ---- the plain twins: torch's modules, int64 indices, torch's parameter names -----------------------------


class PlainBlock(nn.Module):
    def __init__(self, source, to, relu, kernel_size=3):
        super().__init__()
        self.conv, self.bn, self.relu = (
            nn.Conv2d(source, to, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(to),
            relu,
        )

    def forward(self, x):
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class PlainDense(nn.ModuleList):
    """Layers that see all maps before them, then one that takes all of them."""

    def forward(self, x):
        maps = [x]
        for layer in self[:-1]:
            maps.append(layer(torch.cat(maps, 1)))
        return self[-1](torch.cat(maps, 1))


class PlainGate(nn.Module):
    def __init__(self, channels, mode, upsample):
        super().__init__()
        self.mode, self.upsample = mode, upsample
        self.w_x = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.w_g = nn.Conv2d(channels, channels // 2, 1)
        self.psi = nn.Conv2d(channels // 2, 1, 1)

    def forward(self, x, g):
        # Resized first: the 1x1 convolution commutes with it.
        up = self.w_g(F.interpolate(g, size=x.shape[-2:], mode=self.upsample))
        s = F.relu(self.w_x(x) + up if self.mode == "additive" else self.w_x(x) * up)
        alpha = torch.sigmoid(self.psi(s))
        return alpha * x, alpha


def dense_layers(source, count, growth, relu):
    """The layers of a dense section, and how many maps they and its input are."""
    layers = PlainDense(PlainBlock(source + j * growth, growth, relu) for j in range(count))
    return layers, source + count * growth


class PlainNetwork(nn.Module):
    """Either network: a SegNet without `join`."""

    def __init__(
        self,
        in_channels,
        num_classes,
        widths,
        convs,
        decoder_relu=True,
        final_relu=False,
        join=None,
        gate_mode="additive",
        gate_upsample="bilinear",
        block="plain",
        growth=16,
    ):
        super().__init__()
        self.join = join
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        if join:
            self.gates = nn.ModuleList(PlainGate(w, gate_mode, gate_upsample) for w in widths)
        for k, (width, count) in enumerate(zip(widths, convs, strict=True)):
            source = in_channels if k == 0 else widths[k - 1]
            joined = 2 * width if join == "concat" else width
            if block == "dense":
                encoder, at = dense_layers(source, count, growth, True)
                encoder.append(PlainBlock(at, width, True, 1))
                decoder, at = dense_layers(joined, count, growth, decoder_relu)
                size = 1
            else:
                encoder = nn.Sequential(
                    *(PlainBlock(width if j else source, width, True) for j in range(count))
                )
                decoder = nn.Sequential(
                    *(PlainBlock(width if j else joined, width, decoder_relu) for j in range(count - 1))
                )
                at, size = joined if count == 1 else width, 3
            if k > 0:
                decoder.append(PlainBlock(at, widths[k - 1], decoder_relu, size))
            elif final_relu:
                decoder.append(PlainBlock(at, num_classes, True, size))
            else:
                decoder.append(nn.Conv2d(at, num_classes, size, padding=size // 2))
            self.encoders.append(encoder)
            self.decoders.append(decoder)

    def forward(self, x):
        """Logits, and the gates' coefficients, finest first."""
        skips, indices, alphas = [], [], []
        for encoder in self.encoders:
            skips.append(encoder(x))
            x, index = F.max_pool2d(skips[-1], 2, return_indices=True)
            indices.append(index)
        for k in reversed(range(len(skips))):
            joined = F.max_unpool2d(x, indices[k], 2, output_size=skips[k].shape[-2:])
            if self.join:
                gated, alpha = self.gates[k](skips[k], x)
                alphas.insert(0, alpha)
                joined = torch.cat([joined, gated], dim=1) if self.join == "concat" else joined + gated
            x = self.decoders[k](joined)
        return x, alphas


def make(options, **more):
    """A network of ours with batch normalisation away from its starting state, so that it counts."""
    net = (ASegNet if "join" in options else SegNet)(**{**SMALL, **options, **more})
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() == 1:
                nn.init.normal_(p, mean=1.0 if name.endswith("bn.weight") else 0.0, std=0.2)
    return net


def run(net, x):
    """(logits, alphas), whichever network it is."""
    if isinstance(net, ASegNet):
        return net(x, return_attention=True)
    return net(x) if isinstance(net, PlainNetwork) else (net(x), [])


def run_and_differentiate(net, x):
    """Outputs and every gradient, by name, for one fixed functional of the outputs."""
    x = x.clone().requires_grad_()
    logits, alphas = run(net, x)
    outputs = [logits, *alphas]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    names, tensors = zip(*net.named_parameters(), strict=True)
    grads = torch.autograd.grad(
        sum((w * o).sum() for w, o in zip(weights, outputs, strict=True)), [x, *tensors]
    )
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return found | dict(zip(("d input", *(f"d {n}" for n in names)), grads, strict=True))


def assert_near(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        error = (ours[name] - expected).abs().max().item()
        assert error <= tolerance * expected.abs().max().item(), f"{name}: off by {error}"


NETWORKS = {
    "segnet": {},
    "segnet-no-decoder-relu": {"decoder_relu": False},
    "segnet-final-relu": {"final_relu": True},
    "segnet-depth-1": {"widths": (6,), "convs": (1,)},
    "concat": {"join": "concat"},
    "concat-multiplicative-nearest": {
        "join": "concat",
        "gate_mode": "multiplicative",
        "gate_upsample": "nearest",
    },
    "concat-final-relu-no-decoder-relu": {"join": "concat", "final_relu": True, "decoder_relu": False},
    "concat-depth-1": {"join": "concat", "widths": (6,), "convs": (1,)},
    "add": {"join": "add"},
    "add-multiplicative": {"join": "add", "gate_mode": "multiplicative"},
    "add-nearest": {"join": "add", "gate_upsample": "nearest"},
    "dense": {"block": "dense", "growth": 5},
    "dense-concat-final-relu": {"join": "concat", "block": "dense", "growth": 4, "final_relu": True},
    "dense-add-depth-1-no-decoder-relu": {
        "join": "add",
        "block": "dense",
        "widths": (6,),
        "convs": (1,),
        "decoder_relu": False,
    },
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def options(request):
    return request.param


@pytest.mark.parametrize(
    "size, dtype, training",
    [((21, 15), torch.float32, True), ((24, 16), torch.float32, False), ((23, 9), torch.float64, True)],
    ids=["float32-train-odd", "float32-eval-even", "float64-train-odd"],
)
def test_as_plain_pytorch(options, size, dtype, training):
    net = make(options).to(dtype).train(training)
    plain = PlainNetwork(**{**SMALL, **options}).to(dtype).train(training)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, SMALL["in_channels"], *size, dtype=dtype)
    assert_near(run_and_differentiate(net, x), run_and_differentiate(plain, x), NETWORK[dtype])
    # The running statistics too.
    assert_near(net.state_dict(), plain.state_dict(), NETWORK[dtype])


@pytest.mark.parametrize("case", ["segnet", "concat", "add-multiplicative", "dense-concat-final-relu"])
def test_state_dict_serves_every_backend(case):
    net = make(NETWORKS[case])
    x = torch.randn(2, SMALL["in_channels"], 19, 26)
    with af.use_backend("reference"):
        other = make(NETWORKS[case])
        other.load_state_dict(net.state_dict())
        expected = run_and_differentiate(other, x)
    assert_near(run_and_differentiate(net, x), expected, NETWORK[torch.float32])


@pytest.mark.parametrize("case", ["segnet", "concat", "segnet-final-relu", "dense-concat-final-relu"])
def test_state_dict_has_the_keys_of_plain_pytorch(case):
    # The twin's blocks are torch's own: `conv`, `bn`. Checkpoints from before batch normalisation was fused have these.
    net, plain = make(NETWORKS[case]), PlainNetwork(**{**SMALL, **NETWORKS[case]})
    assert set(net.state_dict()) == set(plain.state_dict())
    net.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize("network", [SegNet, ASegNet])
def test_a_replaced_normalisation_keeps_its_relu(network):
    net = network(**SMALL).eval()
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert not any(isinstance(m, af.nn.BatchNormReLU2d) for m in plain.modules())
    x = torch.randn(2, 2, 21, 18)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-5)


def test_segnet_keeps_no_map_before_a_pool():
    """Saved for backward: of a section's last activation only the codes and the pooled map."""
    net = SegNet(**SMALL)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (shapes.append(tuple(t.shape)), t)[1], lambda t: t
    ):
        net(torch.randn(1, 2, 40, 24))
    # Section 0 (6 channels, two convolutions): both outputs and the first's activation, never the second's; each
    # activation is saved by the convolution that reads it. The decoder has the unpooled map and one activation.
    of_first = shapes.count((1, 6, 40, 24))
    plain = SegNet(**SMALL)
    with af.use_backend("reference"):
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (shapes.append(tuple(t.shape)), t)[1], lambda t: t
        ):
            plain(torch.randn(1, 2, 40, 24))
    assert of_first < shapes.count((1, 6, 40, 24))


# ---- sizes and starting values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, with_norm, without", [("vgg16", 29_435_076, 29_435_074), ("matlab64", 667_716, 667_714)]
)
def test_parameter_counts(preset, with_norm, without):
    def count(net):
        return sum(p.numel() for p in net.parameters())

    with torch.device("meta"):
        # Batch normalisation on the logits (MATLAB's layers) has 2 parameters a class, a bias has 1.
        assert count(SegNet(preset=preset, final_relu=True)) == with_norm
        assert count(SegNet(preset=preset)) == without
        # Every gate has w_x [C/2, C], w_g [C/2, C] + C/2, psi C/2 + 1; addition needs no wider convolutions.
        widths = {"vgg16": (64, 128, 256, 512, 512), "matlab64": (64,) * 5}[preset]
        gates = sum(c * c + c + 1 for c in widths)
        assert count(ASegNet(preset=preset, join="add")) == without + gates
        # Concatenation doubles the input of each decoder's first convolution, C to C in both presets.
        assert count(ASegNet(preset=preset)) == without + gates + sum(9 * c * c for c in widths)


@pytest.mark.parametrize("preset, count", [("vgg16", 2_051_684), ("matlab64", 242_468)])
def test_parameter_counts_of_dense_sections(preset, count):
    with torch.device("meta"):
        net = SegNet(preset=preset, final_relu=True, block="dense")
        assert sum(p.numel() for p in net.parameters()) == count
        widths, convs = PRESETS[preset]
        growth, total = 16, 0
        for k, (width, layers) in enumerate(zip(widths, convs, strict=True)):
            for source, to in (
                (1 if k == 0 else widths[k - 1], width),
                (width, 2 if k == 0 else widths[k - 1]),
            ):
                total += sum(9 * (source + j * growth) * growth + 2 * growth for j in range(layers))
                total += (source + layers * growth) * to + 2 * to
        assert total == count


@pytest.mark.parametrize("block", ["plain", "dense"])
def test_starting_weights(block):
    net = ASegNet(preset="matlab64", block=block)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            he = (2 / (9 * module.in_channels)) ** 0.5
            spread = 5 * he / (2 * module.weight.numel()) ** 0.5  # five standard errors
            assert abs(module.weight.std().item() - he) < spread
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()


@pytest.mark.parametrize("block", ["plain", "dense"])
@pytest.mark.parametrize("network", [SegNet, ASegNet])
def test_smallest_input(network, block):
    net = network(**SMALL, block=block)
    assert net(torch.randn(1, 2, 8, 8)).shape == (1, 3, 8, 8)
    for size in ((7, 8), (8, 7)):
        with pytest.raises(
            ValueError, match=rf"x: expected height and width of at least 8 .*{size[0]}, {size[1]}"
        ):
            net(torch.randn(1, 2, *size))


@pytest.mark.parametrize("network", [SegNet, ASegNet])
def test_evaluation_leaves_no_trace_and_does_not_depend_on_the_batch(network):
    net = network(**SMALL)
    net(torch.randn(4, 2, 16, 16))
    state = copy.deepcopy(net.state_dict())
    x = torch.randn(3, 2, 17, 16)
    net.eval()
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(x[i : i + 1]) for i in range(3)])
        assert net(x[:0]).shape == (0, 3, 17, 16)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True))


def test_attention_maps():
    net = ASegNet(**SMALL).eval()
    x = torch.randn(2, 2, 21, 16)
    logits, alphas = net(x, return_attention=True)
    assert torch.equal(logits, net(x))
    assert [tuple(a.shape) for a in alphas] == [(2, 1, 21, 16), (2, 1, 10, 8), (2, 1, 5, 4)]
    assert all(((a > 0) & (a < 1)).all() for a in alphas)


# ---- what a module must bear ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["segnet-final-relu", "concat"])
def test_copies(case):
    net = make(NETWORKS[case]).eval()
    x = torch.randn(1, 2, 17, 19)
    expected = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"join": "concat"},
        pytest.param({"join": "concat", "block": "dense"}, marks=pytest.mark.extended),
    ],
    ids=str,
)
def test_compile(options):
    net = make(options, widths=(4, 6), convs=(1, 1))
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2, 9, 10)
    outputs = [n(x) for n in (net, compiled)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for y in outputs:
        y.square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=name)


class _Conversions(TorchDispatchMode):
    """Notes the operations that rewrite a map in another memory format."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (
            torch.ops.aten.clone.default,
            torch.ops.aten.copy_.default,
            torch.ops.aten._to_copy.default,
        ):
            self.seen.append((function, [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("block", ["plain", "dense"])
@pytest.mark.parametrize("network", [SegNet, ASegNet])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_is_kept(network, memory_format, block):
    # One input channel, as CT has: the strides of such a map do not tell its format.
    net = network(**{**SMALL, "in_channels": 1}, block=block).to(memory_format=memory_format)
    wrong = []

    def look(name):
        def hook(module, args, output):
            maps = [t for t in (output if isinstance(output, tuple) else (output,)) if t.shape[1] > 1]
            wrong.extend(name for t in maps if not t.is_contiguous(memory_format=memory_format))

        return hook

    for name, module in net.named_modules():
        module.register_forward_hook(look(name))
    x = torch.randn(2, 1, 21, 18).contiguous(memory_format=memory_format)
    with _Conversions() as conversions:
        y = net(x)
    assert y.is_contiguous(memory_format=memory_format)
    assert wrong == [] and conversions.seen == []


@pytest.mark.parametrize("case", ["segnet", "concat"])
def test_autocast(case):
    net = make(NETWORKS[case])
    plain = PlainNetwork(**{**SMALL, **NETWORKS[case]})
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 2, 21, 16)
    exact = plain(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, theirs = net(x), plain(x)[0]
    assert y.dtype == torch.bfloat16
    # In the mean: where rounding moves a maximum to another position, both are far off.
    assert (y - exact).abs().mean() <= HALF_FACTOR * (theirs - exact).abs().mean()
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in net.parameters())


# ---- wrong arguments ---------------------------------------------------------------------------------------

WRONG = [
    ({"in_channels": 0}, ValueError, "in_channels: expected an integer of at least 1, got 0"),
    ({"in_channels": 1.0}, TypeError, "in_channels: expected an integer, got 1.0"),
    ({"num_classes": -1}, ValueError, "num_classes: expected an integer of at least 1, got -1"),
    ({"num_classes": True}, TypeError, "num_classes: expected an integer, got True"),
    ({"preset": "vgg19"}, ValueError, "preset: expected 'vgg16' or 'matlab64', got 'vgg19'"),
    ({"widths": []}, ValueError, "widths: expected at least one entry, got"),
    ({"widths": 64}, TypeError, "widths: expected a sequence of integers"),
    ({"widths": (8, 0, 8)}, ValueError, r"widths\[1\]: expected an integer of at least 1, got 0"),
    ({"convs": (2, 2.5, 2)}, TypeError, r"convs\[1\]: expected an integer, got 2.5"),
    ({"convs": (2, 2)}, ValueError, r"convs: expected as many entries as widths has \(3;.*got \(2, 2\)"),
    ({"block": "residual"}, ValueError, "block: expected 'plain' or 'dense', got 'residual'"),
    ({"block": "dense", "growth": 0}, ValueError, "growth: expected an integer of at least 1, got 0"),
    ({"widths": (4, 4), "convs": None}, ValueError, "convs: expected as many entries .*preset 'vgg16'"),
]
WRONG_GATES = [
    ({"join": "concatenate"}, ValueError, "join: expected 'concat' or 'add', got 'concatenate'"),
    ({"gate_mode": "mul"}, ValueError, "mode: expected 'additive' or 'multiplicative', got 'mul'"),
    ({"gate_upsample": "cubic"}, ValueError, "upsample: expected 'bilinear' or 'nearest', got 'cubic'"),
    ({"gate_channels": 0}, ValueError, "gate_channels: expected an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(
    "network, arguments, error, match",
    [(n, *w) for n in (SegNet, ASegNet) for w in WRONG] + [(ASegNet, *w) for w in WRONG_GATES],
)
def test_wrong_arguments(network, arguments, error, match):
    with pytest.raises(error, match=match):
        network(**{**SMALL, **arguments})


@pytest.mark.parametrize("network", [SegNet, ASegNet])
@pytest.mark.parametrize(
    "x, error, match",
    [
        ([[0.0]], TypeError, "x: expected a tensor, got"),
        (torch.zeros(2, 16, 16), ValueError, r"x: expected 4-D shape, got .*\(2, 16, 16\)"),
        (
            torch.zeros(1, 3, 16, 16),
            ValueError,
            r"x: expected 2 channels in dimension 1, got .*\(1, 3, 16, 16\)",
        ),
        (
            torch.zeros(1, 2, 16, 16).double(),
            TypeError,
            "x: expected the dtype of the weights, .*float32, got a float64",
        ),
        (
            torch.zeros(1, 2, 16, 16, device="meta"),
            TypeError,
            "x: expected the device of the weights, cpu, got .*meta",
        ),
        (torch.zeros(1, 2, 16, 16, dtype=torch.uint8), TypeError, "x: expected dtype float32.* got a uint8"),
    ],
)
def test_wrong_input(network, x, error, match):
    with pytest.raises(error, match=match):
        network(**SMALL)(x)
