"""Fused pools and unpools against the untouched model: equal bit for bit, whatever is done with the indices."""

import copy
import functools
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import asegnet_fast as af
from asegnet_fast.fusion.indices import PoolIndices
from tests import classic_nets

from torch.nn.functional import max_pool2d as pool_by_name  # isort: skip


def run(model, *inputs):
    """Outputs, gradients of the inputs and of all parameters."""
    inputs = [i.clone().requires_grad_() for i in inputs]
    model.zero_grad(set_to_none=True)
    result = model(*inputs)
    outputs = [o for o in (result if isinstance(result, tuple) else (result,)) if o is not None]
    wanted = [o for o in outputs if o.requires_grad]
    if wanted:
        torch.manual_seed(1)
        torch.autograd.backward(wanted, [torch.randn_like(o) for o in wanted])
    gradients = [i.grad for i in inputs] + [p.grad for p in model.parameters()]
    return [o.detach() for o in outputs] + gradients


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
            assert torch.equal(torch.as_tensor(a + 0), b + 0)


def check(model, *inputs, replaced=None):
    """`model` fused gives the same; returns the report."""
    fused = copy.deepcopy(model)
    report = af.fuse(fused)
    if replaced is not None:
        assert len(report.replaced) == replaced, str(report)
    assert_equal(run(fused, *inputs), run(model, *inputs))
    return report


# ---- the forms in which pools and unpools are called -----------------------------------------------------


class Net(nn.Module):
    """Calls a function given at construction; `pool` and `unpool` are modules, so that the form is the function's."""

    def __init__(self, form, pool=None, unpool=None):
        super().__init__()
        self.pool = pool or nn.MaxPool2d(2, return_indices=True)
        self.unpool = unpool or nn.MaxUnpool2d(2)
        self.form = form

    def forward(self, x):
        return self.form(self, x)


def _other_file(t):
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    return torch.load(file)


def _in_place(net, x):
    _, i = net.pool(x.detach())  # torch's own pool refuses to differentiate once its indices were written to
    i += 1
    i[:, :, 0, 0] -= 1
    torch.add(i, 1, out=i)
    return net.unpool(F.avg_pool2d(x, 2), i % (x.shape[-1] * x.shape[-2]), x.shape), i


FORMS = {
    "no size": lambda net, x: net.unpool(*net.pool(x)),
    "two entries": lambda net, x: net.unpool(*net.pool(x), x.shape[-2:]),
    "two, a list": lambda net, x: net.unpool(*net.pool(x), list(x.shape[-2:])),
    "four entries": lambda net, x: net.unpool(*net.pool(x), output_size=x.size()),
    "wrong channels": lambda net, x: net.unpool(*net.pool(x), output_size=(7, 99, *x.shape[-2:])),
    "keywords": lambda net, x: net.unpool(
        input=net.pool(x)[0], indices=net.pool(x)[1], output_size=x.shape[-2:]
    ),
    "another size": lambda net, x: net.unpool(
        *net.pool(x), output_size=(x.shape[-2] // 2 * 2 + 1, x.shape[-1] // 2 * 2 + 1)
    ),
    "used twice": lambda net, x: (lambda y, i: net.unpool(y, i, x.shape) + net.unpool(y * 2, i, x.shape))(
        *net.pool(x)
    ),
    "values changed": lambda net, x: (lambda y, i: net.unpool((y - 1).relu() * 3, i, x.shape))(*net.pool(x)),
    "sliced": lambda net, x: (lambda y, i: net.unpool(y[:, 1:], i[:, 1:], x.shape))(*net.pool(x)),
    "indexed": lambda net, x: (lambda y, i: net.unpool(y[0], i[0], x.shape[-2:]))(*net.pool(x)),
    "swapped": lambda net, x: (lambda y, i: net.unpool(y.flip(0), i.flip(0), x.shape))(*net.pool(x)),
    "concatenated": lambda net, x: (
        lambda y, i: net.unpool(torch.cat([y, y], 1), torch.cat([i, i], 1), x.shape)
    )(*net.pool(x)),
    "moved": lambda net, x: (lambda y, i: net.unpool(y, i.to("cpu", copy=True), x.shape))(*net.pool(x)),
    "cloned": lambda net, x: (lambda y, i: net.unpool(y, i.clone(), x.shape))(*net.pool(x)),
    "detached": lambda net, x: (lambda y, i: net.unpool(y, i.detach(), x.shape))(*net.pool(x)),
    "saved": lambda net, x: (lambda y, i: net.unpool(y, _other_file(i), x.shape))(*net.pool(x)),
    "pickled": lambda net, x: (lambda y, i: net.unpool(y, pickle.loads(pickle.dumps(i)), x.shape))(
        *net.pool(x)
    ),
    "numpy": lambda net, x: (lambda y, i: net.unpool(y, torch.from_numpy(i.numpy().copy()), x.shape))(
        *net.pool(x)
    ),
    "returned": lambda net, x: net.pool(x),
    "computed with": lambda net, x: (lambda y, i: (y, i // x.shape[-1], i % x.shape[-1], i.float().mean()))(
        *net.pool(x)
    ),
    "compared": lambda net, x: (lambda y, i: y * (i == i.amax((2, 3), keepdim=True)))(*net.pool(x)),
    "gathered by": lambda net, x: (lambda y, i: x.flatten(2).gather(2, i.flatten(2)))(*net.pool(x)),
    "scattered by": lambda net, x: (
        lambda y, i: torch.zeros_like(x).flatten(2).scatter(2, i.flatten(2), y.flatten(2))
    )(*net.pool(x)),
    "written to": _in_place,
    "unpooled by torch": lambda net, x: (lambda y, i: F.max_unpool2d(y, i, 2, output_size=x.shape))(
        *net.pool(x)
    ),
}


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (2, 3, 7, 9), (3, 3, 5, 5)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_call(form, shape):
    model, x = Net(FORMS[form]), torch.randn(shape)
    try:
        expected = run(model, x)
    except (ValueError, RuntimeError) as error:  # an index that lies outside the smaller map
        af.fuse(model)
        with pytest.raises(type(error)):
            run(model, x)
        return
    report = af.fuse(model)
    assert [e.what for e in report.replaced] == ["MaxPool2d", "MaxUnpool2d"] and not report.left
    assert_equal(run(model, x), expected)


def test_a_size_of_three_entries_counts_as_its_last_two():
    model, x = Net(FORMS["two entries"]), torch.randn(2, 3, 7, 9)
    expected = model(x)
    model.form = lambda net, x: net.unpool(*net.pool(x), (3, 7, 9))
    af.fuse(model)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 8, 6),
        torch.randn(2, 3, 8, 6).double(),
        torch.randn(2, 3, 8, 6).bfloat16(),
        torch.randn(2, 4, 8, 6).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 16, 6)[:, :, ::2],
        torch.randn(0, 3, 8, 6),
        torch.zeros(2, 3, 8, 6),
        torch.full((1, 2, 4, 4), float("nan")),
    ],
    ids=["3-D", "double", "bfloat16", "channels_last", "strided", "empty", "ties", "NaN"],
)
def test_every_kind_of_input(x):
    def form(net, x):
        y, i = net.pool(x)
        return net.unpool(y, i, x.shape[-2:]).nan_to_num(5), y.nan_to_num(7), i

    check(Net(form), x, replaced=2)


def test_integer_maps_stay_torchs():
    model = Net(lambda net, x: net.pool(x))
    x = torch.randint(-9, 9, (1, 2, 6, 6))
    expected = model(x)
    af.fuse(model)
    assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("return_indices", [False, True])
def test_ceil_mode_and_pools_without_indices(ceil_mode, return_indices):
    pool = nn.MaxPool2d((2, 2), (2, 2), return_indices=return_indices, ceil_mode=ceil_mode)
    check(Net(lambda net, x: net.pool(x), pool), torch.randn(2, 3, 7, 5), replaced=2)


@pytest.mark.parametrize("settings", [(3, 2), (3, 2, 1), (2, 1), (2, 2, 1), (4,)], ids=str)
def test_other_pools_are_left(settings):
    model = nn.Sequential(nn.MaxPool2d(*settings))
    report = check(model, torch.randn(1, 2, 9, 9), replaced=0)
    assert report.left[0].path == "0" and "not 2x2 with stride 2: kernel_size=" in report.left[0].detail


def test_an_unpool_of_another_pools_indices():
    """A 3x3 pool with stride 2 gives the same index twice; the unpool of kernel 2 takes what comes."""
    form = lambda net, x: net.unpool(*net.pool(x), x.shape[-2:])  # noqa: E731
    check(Net(form, nn.MaxPool2d(3, 2, 1, return_indices=True)), torch.randn(2, 3, 8, 8), replaced=1)


def test_indices_are_a_byte_until_somebody_looks():
    pool = nn.MaxPool2d(2, return_indices=True)
    af.fuse(pool)
    _, i = pool(torch.randn(1, 2, 8, 8))
    assert isinstance(i, PoolIndices) and i.dtype == torch.int64 and i.shape == (1, 2, 4, 4)
    held = i.nbytes_held()
    assert held == 32
    assert i.max() < 64 and i.nbytes_held() == 8 * held
    assert i[0].data_ptr() == i.data_ptr()


def test_a_change_of_indices_after_the_unpool_is_noticed_as_torch_does():
    def spoil(net, x):
        y, i = net.pool(x)
        assert i.max() > 0
        out = net.unpool(y, i, x.shape)
        i.zero_()
        return out

    model, x = Net(spoil), torch.randn(1, 2, 4, 4, requires_grad=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model(x).sum().backward()
        af.fuse(model)


@pytest.mark.parametrize(
    "change", [lambda i: i.resize_(3), lambda i: i.unsqueeze_(0), lambda i: setattr(i, "data", i + 1)]
)
def test_other_memory_in_place_is_refused(change):
    pool = nn.MaxPool2d(2, return_indices=True)
    af.fuse(pool)
    with pytest.raises(RuntimeError, match="indices: expected no change"):
        change(pool(torch.randn(1, 2, 8, 8))[1])


# ---- functions called in forward methods -----------------------------------------------------------------


def halve(x):
    return F.max_pool2d(x, 2)


class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = F.max_pool2d
        self.partial = functools.partial(F.max_pool2d, kernel_size=2, return_indices=True)

    def forward(self, x):
        parts = [halve(x), pool_by_name(x, 2), torch.max_pool2d(x, 2), nn.functional.max_pool2d(x, (2, 2))]
        parts += [self.kept(x, 2), self.partial(x)[0], self._method(x), self._static(x)]
        parts += [f(x) for f in (lambda x: F.max_pool2d(x, 2),)]
        y, i = F.max_pool2d_with_indices(x, 2)
        z = F.max_unpool2d(y, i, 2, output_size=x.shape)
        parts.append(F.max_pool2d(z, 3, stride=2, padding=1))
        return torch.cat(parts), i

    def _method(self, x, *, kernel=2):
        return F.max_pool2d(input=x, kernel_size=kernel)

    @staticmethod
    def _static(x):
        return F.max_pool2d(x, 2, 2)


def test_calls_of_functions():
    report = check(Called(), torch.randn(2, 3, 8, 6))
    whats = sorted(e.what for e in report.replaced)
    assert whats == [
        "F.max_pool2d, 4 times",
        "F.max_pool2d_with_indices",
        "F.max_unpool2d",
        "halve",
        "max_pool2d in attribute kept",
        "max_pool2d in attribute partial",
        "nn.functional.max_pool2d",
        "pool_by_name",
        "torch.max_pool2d",
    ]
    assert not report.left


def test_calls_save_codes():
    model, x = Called(), torch.randn(2, 3, 8, 6, requires_grad=True)
    report = af.fuse(model, x)
    assert report.saved.after < report.saved.before / 2
    assert report.largest_difference == 0


class Child(Called):
    """Defaults, closures and `super()` of a method survive."""

    def forward(self, x, scale=2, *, twice=False):
        def scaled(y):
            return y * scale

        y, i = super().forward(x)
        return scaled(F.max_pool2d(y, 2)) * (2 if twice else 1), i


def test_a_method_with_closures_and_super():
    check(Child(), torch.randn(2, 3, 8, 8))
    model, x = Child(), torch.randn(2, 3, 8, 8)
    expected = model(x, 3, twice=True)
    af.fuse(model)
    assert torch.equal(model(x, 3, twice=True)[0], expected[0])


class MyPool(nn.MaxPool2d):
    """Somebody's own class with torch's forward."""


class Local(nn.Module):
    def forward(self, x):
        import torch.nn.functional as functional

        return functional.max_pool2d(x, 2)


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return F.max_pool2d(x, 2)


class Registered(nn.Module):
    def __init_subclass__(cls, **kwargs):
        raise AssertionError("a class was derived")

    def forward(self, x):
        return F.max_pool2d(x, 2)


def test_what_cannot_be_replaced_is_left_with_a_reason():
    def left(model, reason):
        report = check(model, torch.randn(2, 3, 8, 8), replaced=0)
        assert len(report.left) == 1 and reason in report.left[0].detail, str(report)

    left(Local(), "not read from a global name")
    left(Decorated(), "forward is decorated")
    left(Registered(), "__init_subclass__")
    left(torch.fx.symbolic_trace(Plain()), "GraphModule")
    left(torch.jit.script(nn.MaxPool2d(2)), "torch.jit")
    own = nn.MaxPool2d(2)
    own.forward = lambda x: F.max_pool2d(x, 2) * 2
    report = af.fuse(own)
    assert "attribute of this object" in report.left[0].detail


class Plain(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 2)


def test_a_subclass_of_torchs_pool():
    report = check(MyPool(2), torch.randn(2, 3, 8, 8), replaced=1)
    assert report.replaced[0].what == "forward of MaxPool2d"


def test_torch_and_the_models_module_keep_what_they_hold():
    before = {
        name: dict(vars(m)) for name, m in (("F", F), ("torch", torch), ("pooling", nn.modules.pooling))
    }
    mine = {name: value for name, value in globals().items() if not name.startswith("__asegnet_fast_")}
    method = Called.forward
    af.fuse(Called())
    for name, m in (("F", F), ("torch", torch), ("pooling", nn.modules.pooling)):
        assert dict(vars(m)) == before[name]
    assert Called.forward is method and all(globals()[name] is value for name, value in mine.items())
    assert all(name.startswith("__asegnet_fast_") for name in set(globals()) - set(mine))


# ---- whole networks --------------------------------------------------------------------------------------

NETS = {
    "SegNet": (classic_nets.SegNet, 2),
    "SegNet by functions": (classic_nets.FunctionalSegNet, 4),
    "DeconvNet": (classic_nets.DeconvNet, 3),
    "ENet": (classic_nets.ENet, 4),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_classic_networks_are_equal_bit_for_bit(net, training):
    make, replaced = NETS[net]
    model, x = make().train(training), torch.randn(2, 2, 24, 16)
    expected_state = {k: v.clone() for k, v in model.state_dict().items()}
    fused = copy.deepcopy(model)
    report = af.fuse(fused, x)
    assert len(report.replaced) == replaced and report.largest_difference == 0
    assert report.saved.after < report.saved.before
    assert_equal(
        list(fused.state_dict().values()), list(expected_state.values())
    )  # the example left no trace
    assert list(fused.state_dict()) == list(expected_state)
    torch.manual_seed(3)  # for dropout
    expected = run(model, x)
    torch.manual_seed(3)
    assert_equal(run(fused, x), expected)
    assert_equal(list(fused.state_dict().values()), list(model.state_dict().values()))


@pytest.mark.parametrize("size", [(23, 17), (16, 24)], ids=str)
def test_odd_sizes(size):
    check(classic_nets.SegNet(), torch.randn(2, 2, *size), replaced=2)


# ---- what else happens to a model ------------------------------------------------------------------------


@pytest.fixture(params=["SegNet", "SegNet by functions"])
def pair(request):
    """(fused, untouched, x)"""
    torch.manual_seed(2)
    model = NETS[request.param][0]()
    fused = copy.deepcopy(model)
    af.fuse(fused)
    return fused, model, torch.randn(2, 2, 13, 16)


def test_unfuse_restores_every_class(pair):
    fused, model, x = pair
    assert any(type(a) is not type(b) for a, b in zip(fused.modules(), model.modules(), strict=True))
    assert af.unfuse(fused) is fused
    for a, b in zip(fused.modules(), model.modules(), strict=True):
        assert type(a) is type(b) and set(vars(a)) == set(vars(b))
    assert_equal(run(fused, x), run(model, x))
    called = Called()
    kept = dict(vars(called))
    af.fuse(called)
    assert af.unfuse(called).kept is kept["kept"] and called.partial.func is F.max_pool2d
    assert type(called) is Called


def test_a_second_fuse_finds_nothing(pair):
    fused, *_ = pair
    report = af.fuse(fused)
    assert not report.replaced and not report.left


def test_copies_and_pickles(pair):
    fused, model, x = pair
    expected = run(model, x)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.copy(fused)):
        assert [type(m) for m in other.modules()] == [type(m) for m in fused.modules()]
        assert_equal(run(other, x), expected)
        model.zero_grad()


def test_names_and_printed_form_stay(pair):
    fused, model, _ = pair
    assert repr(fused) == repr(model)
    assert isinstance(fused, type(model)) and type(fused).__qualname__ == type(model).__qualname__


def test_a_pickle_is_read_by_a_process_that_never_called_fuse(tmp_path):
    nets = [classic_nets.SegNet().eval(), classic_nets.FunctionalSegNet().eval()]
    pairs = [(copy.deepcopy(net), net) for net in nets]
    for fused, _ in pairs:
        af.fuse(fused)
    torch.save((pairs, torch.randn(2, 2, 13, 16)), tmp_path / "models.pt")
    program = """
import sys, torch
pairs, x = torch.load(sys.argv[1], weights_only=False)
import asegnet_fast as af
for fused, model in pairs:
    assert repr(fused) == repr(model)
    assert any(type(a) is not type(b) for a, b in zip(fused.modules(), model.modules()))
    assert torch.equal(fused(x), model(x))
    assert type(af.unfuse(fused)) is type(model)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "models.pt")], check=True)


def test_state_dicts_are_exchanged(pair):
    fused, model, x = pair
    other = type(model)()
    other.load_state_dict(fused.state_dict())
    fused.load_state_dict(model.state_dict())
    assert_equal(run(other, x), run(fused, x))


def test_hooks_see_what_they_saw():
    def watched(fused):
        torch.manual_seed(2)
        model, seen = classic_nets.SegNet(), []
        model.pool.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        model.unpool.register_forward_hook(lambda m, args, out: seen.extend((*args, out)))
        if fused:
            af.fuse(model)
        model.pool.register_forward_hook(lambda m, args, out: seen.extend(out))
        model.pool.register_full_backward_hook(lambda m, gi, go: seen.extend((gi[0], go[0])))
        model.unpool.register_full_backward_pre_hook(lambda m, go: seen.append(go[0]))
        model.register_forward_hook(lambda m, args, out: out * 2)
        torch.manual_seed(3)
        return run(model, torch.randn(2, 2, 16, 16)), seen

    (got, got_seen), (expected, seen) = watched(True), watched(False)
    assert_equal(got, expected)
    assert_equal([s.detach() for s in got_seen], [s.detach() for s in seen])


class Hourglass(nn.Module):
    """Small, since compiling takes long."""

    def __init__(self):
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        y, outer = self.pool(x)
        z, inner = F.max_pool2d(y, 2, return_indices=True)
        z = torch.nn.functional.max_unpool2d(z * self.scale, inner, 2, output_size=y.shape)
        return self.unpool(z, outer, x.shape)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.extended)])
def test_compile_in_one_graph(dynamic):
    model = Hourglass()
    fused = copy.deepcopy(model)
    assert len(af.fuse(fused).replaced) == 4
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((13, 16), (16, 10)):
        x = torch.randn(2, 3, *size)
        assert_equal(run(compiled, x), run(model, x))


@pytest.mark.parametrize("form", ["computed with", "returned", "another size"])
def test_compiled_indices_are_real(form):
    model, x = Net(FORMS[form]), torch.randn(2, 3, 8, 6)
    expected = run(model, x)
    af.fuse(model)
    assert_equal(run(torch.compile(model, fullgraph=True, backend="aot_eager"), x), expected)


def test_a_model_compiled_before_fuse_is_compiled_again():
    model, x = Hourglass(), torch.randn(2, 3, 13, 16)
    expected = run(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_equal(run(compiled, x), expected)
    assert af.fuse(model).replaced
    assert_equal(run(compiled, x), expected)


def test_eager_indices_enter_a_compiled_decoder():
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    x = torch.randn(2, 3, 9, 6)
    y, i = pool(x)
    expected = unpool(y, i, x.shape)
    model = nn.ModuleList([pool, unpool])
    af.fuse(model)
    compiled = torch.compile(model[1], fullgraph=True, backend="aot_eager")
    y, i = model[0](x)
    assert isinstance(i, PoolIndices)
    assert torch.equal(compiled(y, i, x.shape), expected)


def test_autocast_and_channels_last(pair):
    fused, model, x = pair
    for m in (fused, model):
        m.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(run(fused, x), run(model, x))


def test_transforms(pair):
    fused, model, x = (p.eval() if isinstance(p, nn.Module) else p for p in pair)
    tangent = torch.randn_like(x)
    got, expected = (torch.func.jvp(m, (x,), (tangent,)) for m in (fused, model))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))
    assert torch.equal(torch.func.vmap(fused)(x[None]), model(x)[None])


def test_a_trace_is_torchs():
    model = nn.Sequential(nn.MaxPool2d(2), Plain())
    af.fuse(model)
    traced = torch.jit.trace(model, torch.randn(1, 1, 8, 8))
    x = torch.randn(2, 3, 9, 14)
    assert torch.equal(traced(x), model(x)) and "asegnet_fast::" not in str(traced.inlined_graph)


def test_activation_checkpointing():
    def form(net, x):
        return torch.utils.checkpoint.checkpoint(FORMS["four entries"], net, x, use_reentrant=False)

    check(Net(form), torch.randn(2, 3, 8, 6), replaced=2)


def test_replicas_of_data_parallel(pair):
    fused, model, x = pair
    replica = fused._replicate_for_data_parallel()
    assert type(replica) is type(fused)
    assert_equal(run(nn.DataParallel(fused), x), run(model, x))


def test_distributed_data_parallel(pair, tmp_path):
    fused, model, x = pair
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(fused)
        assert_equal(run(wrapped, x), run(model, x))
        assert not af.fuse(wrapped).replaced
        af.unfuse(wrapped)
        assert type(wrapped.module) is type(model)
    finally:
        torch.distributed.destroy_process_group()


def test_many_threads(pair):
    from concurrent.futures import ThreadPoolExecutor

    fused, model, x = (p.eval() if isinstance(p, nn.Module) else p for p in pair)
    expected = model(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: fused(x), range(16)))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got "):
        af.fuse(lambda x: x)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got "):
        af.unfuse(3)
    with pytest.raises(RuntimeError):  # what the model says of its input
        af.fuse(classic_nets.SegNet(), torch.randn(1, 5, 8, 8))
