"""Attention gates of the popular form, recognised by what they compute.

    out = x * sigmoid(BN(psi(relu(BN(Wx x) + BN(Wg g)))))        Wx, Wg, psi: 1x1 convolutions; each BN may be absent

A module is a gate if torch.fx finds exactly this graph in its forward, in training and in evaluation, whatever its
names and the order of its arguments; and if the fused form then gives its numbers and gradients on random maps. In
evaluation the batch normalisations are folded into the convolutions and the gate is one op. In training their
statistics need the two maps that the op does not form, so a gate with batch normalisation then runs as it is.
"""

from __future__ import annotations

import copy
import dis
import operator
import types
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from asegnet_fast.fusion import classes
from asegnet_fast.ops import _library
from asegnet_fast.ops._checks import FLOATS
from asegnet_fast.ops.attention_gate.op import attention_gate

KIND = "gate"
_PLAN = "_asegnet_fast_gate"
#: A gate has three convolutions, so many normalisations and activations, and what holds them.
_MOST_MODULES = 24
_ADD = (operator.add, operator.iadd, torch.add)
_MUL = (operator.mul, operator.imul, torch.mul)
_RELU = (F.relu, torch.relu, nn.ReLU)
_SIGMOID = (F.sigmoid, torch.sigmoid, nn.Sigmoid)


class Branch(NamedTuple):
    """Names of a 1x1 convolution and of the batch normalisation behind it (None: there is none)."""

    conv: str
    norm: str | None


class Plan(NamedTuple):
    """A gate's parts; arguments: the names of forward's two, in order; x: which of them is scaled."""

    arguments: tuple[str, str]
    x: str
    w_x: Branch
    w_g: Branch
    psi: Branch


class NotAGate(Exception):
    """Its text says why; `likely` whether a user would call the module a gate nevertheless."""

    def __init__(self, reason: str, likely: bool = False) -> None:
        super().__init__(reason)
        self.likely = likely


# ---- recognition ----------------------------------------------------------------------------------------


def find(module: nn.Module) -> Plan:
    """The plan of a gate.

    Raises:
        NotAGate: it is none, or one that cannot be fused.
    """
    _check_outside(module)
    was_training = {m: m.training for m in module.modules()}
    try:
        plans = [_match(module.train(mode)) for mode in (True, False)]
    finally:
        for m, mode in was_training.items():
            m.training = mode
    if plans[0] != plans[1]:
        raise NotAGate("forward depends on the training mode")
    try:
        same = _same_numbers(module, plans[0])
    except Exception as error:  # it cannot be copied, or has shapes that do not fit together
        raise NotAGate(f"the fused form cannot be tried: {error}", likely=True) from None
    if not same:
        raise NotAGate("the fused form gives other numbers", likely=True)
    return plans[0]


def _check_outside(module: nn.Module) -> None:
    """Cheap signs that it is no gate, before anything is traced."""
    inner = [m for m in module.modules() if not isinstance(m, nn.Sequential)][1:]
    convs = [m for m in inner if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    if len(inner) > _MOST_MODULES or len(convs) != 3 or not any(c.out_channels == 1 for c in convs):
        raise NotAGate("not three convolutions, of which one has one channel")
    function = getattr(type(module), "forward", None)
    if not isinstance(function, types.FunctionType):
        raise NotAGate("forward is no plain function")
    if any(isinstance(c, nn.Conv3d) for c in convs):
        raise NotAGate("three-dimensional", likely=True)
    state = set(vars(module)) - set(vars(nn.Module()))  # a trace would make constants of these
    if state & set(function.__code__.co_names):
        raise NotAGate(f"forward reads {', '.join(sorted(state))}, which may change", likely=True)
    for step in dis.get_instructions(function):
        if step.opname.startswith(("STORE_", "DELETE_")) and step.opname not in ("STORE_FAST", "DELETE_FAST"):
            raise NotAGate(f"forward keeps {step.argval} besides its result", likely=True)
        if step.opname == "LOAD_GLOBAL" and not _is_torchs(function.__globals__.get(step.argval)):
            raise NotAGate(f"forward uses {step.argval}, which is not torch's", likely=True)


def _is_torchs(value: object) -> bool:
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(name).split(".")[0] == "torch"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return type(m).forward is not nn.Sequential.forward  # anything else may read attributes of its own


def _match(module: nn.Module) -> Plan:
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # what forward does with a proxy is its own affair
        raise NotAGate(f"forward cannot be traced: {error}") from None
    nodes = list(graph.nodes)
    arguments = tuple(n.target for n in nodes if n.op == "placeholder")
    if len(arguments) != 2:
        raise NotAGate("forward does not take two maps")
    reader = _Reader(module)
    (result,) = nodes[-1].args
    sides = reader.two(result, _MUL, "the result is not a product")
    x, mask = sides if sides[0].op == "placeholder" else sides[::-1]
    if x.op != "placeholder":
        raise NotAGate("the result is not one of the maps times a gate")
    if reader.is_resize(mask):
        raise NotAGate(
            "the gate is formed on the coarser grid of g and resized (Oktay et al. 2018)", likely=True
        )
    psi, rest = reader.branch(reader.one(mask, _SIGMOID, "no sigmoid"))
    total = reader.one(rest, _RELU, "no ReLU")
    branches = [reader.branch(side) for side in reader.two(total, _ADD, "no sum of two branches")]
    by_source = {source: branch for branch, source in branches}
    others = [n for n in nodes if n.op == "placeholder" and n is not x]
    if set(by_source) != {x, *others}:
        raise NotAGate("the branches do not start from the two maps")
    if len(nodes) - 3 != reader.seen:  # the placeholders and the output
        raise NotAGate("forward does more than a gate")
    return Plan(arguments, x.target, by_source[x], by_source[others[0]], psi)


class _Reader:
    """Reads a graph from its end; counts the operations it has understood."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.seen = 0

    def _kind(self, node: fx.Node) -> object:
        return type(self.module.get_submodule(node.target)) if node.op == "call_module" else node.target

    def one(self, node: object, kinds: tuple, otherwise: str) -> fx.Node:
        """The operand of an operation with one."""
        named = isinstance(node, fx.Node) and node.op == "call_method" and node.target in ("relu", "sigmoid")
        method = named and getattr(torch, node.target) in kinds
        if not isinstance(node, fx.Node) or not (method or self._kind(node) in kinds) or len(node.args) != 1:
            raise NotAGate(otherwise)
        self.seen += 1
        return node.args[0]

    def two(self, node: object, kinds: tuple, otherwise: str) -> tuple[fx.Node, fx.Node]:
        """The operands of an operation with two."""
        plain = isinstance(node, fx.Node) and node.op == "call_function" and node.target in kinds
        if (
            not plain
            or len(node.args) != 2
            or not all(isinstance(a, fx.Node) for a in node.args)
            or node.kwargs
        ):
            raise NotAGate(otherwise)
        self.seen += 1
        return node.args

    def is_resize(self, node: fx.Node) -> bool:
        return self._kind(node) in (F.interpolate, nn.Upsample, nn.UpsamplingBilinear2d)

    def branch(self, node: fx.Node) -> tuple[Branch, fx.Node]:
        """A 1x1 convolution, with or without batch normalisation, and what goes into it."""
        norm = None
        if self._kind(node) is nn.BatchNorm2d:
            norm, node = node.target, self.one(node, (nn.BatchNorm2d,), "")
        if self.is_resize(node):
            raise NotAGate("a branch is resized", likely=True)
        source = self.one(node, (nn.Conv2d,), "a branch is not a convolution with or without normalisation")
        conv = self.module.get_submodule(node.target)
        if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.groups != 1 or conv.padding not in (
            (0, 0), "valid", "same",
        ):  # fmt: skip
            raise NotAGate(f"a branch is no 1x1 convolution with stride 1: {conv}", likely=True)
        return Branch(node.target, norm), source


def _same_numbers(module: nn.Module, plan: Plan) -> bool:
    """The fused form against forward in float64: result and gradients of the maps and of all parameters."""
    twin = copy.deepcopy(module).double().cpu().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in (t for t in [*twin.parameters(), *twin.buffers()] if t.is_floating_point()):
            t.copy_(torch.rand(t.shape, generator=generator, dtype=t.dtype) + 0.25)
    channels = {name: twin.get_submodule(b.conv).in_channels for name, b in _sources(plan).items()}
    maps = [
        torch.randn(2, channels[n], 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for n in plan.arguments
    ]
    wanted = [*maps, *twin.parameters()]
    named = dict(zip(plan.arguments, maps, strict=True))
    found = []
    with torch.enable_grad():
        for out in (twin(*maps), _fused(twin, plan, **named)):
            weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
            found.append((out, *torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True)))
    return all(
        (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-9, atol=1e-9))
        for a, b in zip(*found, strict=True)
    )


def _sources(plan: Plan) -> dict[str, Branch]:
    g = next(n for n in plan.arguments if n != plan.x)
    return {plan.x: plan.w_x, g: plan.w_g}


# ---- the fused forward ----------------------------------------------------------------------------------


def _folded(module: nn.Module, branch: Branch) -> tuple[Tensor, Tensor]:
    """Weight [F, C, 1, 1] and bias [F] of a convolution with its batch normalisation in evaluation."""
    conv = module.get_submodule(branch.conv)
    weight, bias = conv.weight, conv.bias
    if branch.norm is not None:
        norm = module.get_submodule(branch.norm)
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        bias = shift * scale if norm.bias is None else shift * scale + norm.bias
        weight = weight * scale[:, None, None, None]
    return weight, torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias


def _fused(module: nn.Module, plan: Plan, **maps: Tensor) -> Tensor:
    (w_x, b_x), (w_g, b_g), (w_psi, b_psi) = (_folded(module, b) for b in (plan.w_x, plan.w_g, plan.psi))
    x = maps.pop(plan.x)
    (g,) = maps.values()
    return attention_gate(x, g, w_x, w_g, b_g + b_x, w_psi, b_psi)[0]


def _is_ready(module: nn.Module, plan: Plan, maps: dict[str, Tensor]) -> bool:
    """Whether this call may be fused; forward itself takes the rest, its complaints included."""
    x, g = maps.get(plan.arguments[0]), maps.get(plan.arguments[1])
    if not (isinstance(x, Tensor) and isinstance(g, Tensor)) or x.dim() != 4 or g.dim() != 4:
        return False
    if x.shape[0] != g.shape[0] or x.shape[2:] != g.shape[2:] or 0 in x.shape or 0 in g.shape:
        return False
    if x.dtype not in FLOATS or g.dtype != x.dtype or _library.is_transformed() or torch.jit.is_tracing():
        return False
    for branch in (plan.w_x, plan.w_g, plan.psi):
        conv = module.get_submodule(branch.conv)
        if type(conv) is not nn.Conv2d or not _agrees(conv.weight, x):
            return False
        if branch.norm is not None:
            norm = module.get_submodule(branch.norm)
            if type(norm) is not nn.BatchNorm2d or norm.training or norm.running_mean is None:
                return False
    sources = _sources(plan)
    if any(maps[n].shape[1] != module.get_submodule(b.conv).in_channels for n, b in sources.items()):
        return False
    # A hook inside wants to see a map that is never formed.
    return not any(classes.has_hooks(m) for m in module.modules() if m is not module)


def _agrees(weight: Tensor, x: Tensor) -> bool:
    """Whether forward's result would have the op's dtype: under autocast, that of x."""
    if _library.autocast_is_on(x.device.type):
        return x.dtype == torch.get_autocast_dtype(x.device.type) and weight.dtype != torch.float64
    return weight.dtype == x.dtype


def _methods(original: type) -> dict[str, object]:
    def forward(self, *args, **kwargs):
        plan = getattr(self, _PLAN)
        maps = {**dict(zip(plan.arguments, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) == 2 and len(maps) == 2 and _is_ready(self, plan, maps):
            return _fused(self, plan, **maps)
        return original.forward(self, *args, **kwargs)

    return {"forward": forward}


classes.register(KIND, _methods)


def become(module: nn.Module, plan: Plan) -> str | None:
    """Make a gate of `module`; why that cannot be, or None."""
    reason = classes.become(module, KIND)
    if reason is None:
        vars(module)[_PLAN] = plan
    return reason


def describe(plan: Plan) -> str:
    """What stands there now."""
    normalised = any(b.norm for b in (plan.w_x, plan.w_g, plan.psi))
    return "one op" + (
        " in evaluation; in training batch normalisation needs the maps in between" if normalised else ""
    )


def restore(module: nn.Module) -> None:
    vars(module).pop(_PLAN, None)
