"""The dispatcher namespace of the ops, and which implementation serves a call.

An op is defined here by its schema, with its plain PyTorch reference as the kernel for every device
(`CompositeExplicitAutograd`). A C++ or CUDA kernel registered for its own key by a library that
`asegnet_fast._extension` loads wins over it. A Triton kernel is a second overload, `foo.triton`, of the same schema:
both can then serve CUDA, a compiled graph names the one it took, and a gradient calls the overload of its forward
(`same`). `auto` takes the native kernel, else Triton's, else the reference. This is the one place that reads
`ASEGNET_FAST_BACKEND`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function
from torch.utils import _pytree as pytree

from asegnet_fast import _extension
from asegnet_fast.ops._checks import check_choice
from asegnet_fast.ops._layout import memory_format

NAMESPACE = "asegnet_fast"
BACKENDS = ("auto", "reference", "native", "triton")
_VARIABLE = "ASEGNET_FAST_BACKEND"
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
#: The least compute capability that the Triton kernels are compiled and tested for, major.
TRITON_CAPABILITY = 8

#: Whether Triton runs its kernels in Python, on any device, for tests; Triton itself reads the variable as `@jit` runs.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # importing it takes a second

# Looked up once: a small op's call is mostly such look-ups.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_functorch_level = torch._C._functorch.maybe_current_level
_below_autograd = torch._C._AutoDispatchBelowAutograd
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_requires_grad = torch._C._any_requires_grad
_is_tracing = torch._C._is_tracing

_forward_ops: list[str] = []  # names of the ops that backends() reports
_ops: dict[str, Op] = {}


# ---- which implementation -------------------------------------------------------------------------------


def _from_environment() -> str:
    value = os.environ.get(_VARIABLE, "auto")
    check_choice(_VARIABLE, value, BACKENDS)
    return value


_backend = _from_environment()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose which implementation serves the ops inside a `with` block.

    Args:
        name: "auto" (the fastest one there is for a tensor's device), "reference" (plain PyTorch),
            "native" (C++ or CUDA) or "triton". `ASEGNET_FAST_BACKEND` sets the choice outside any block.

    The choice is one module-level value of the process, not one per thread.

    Raises:
        ValueError: for another name.
        RuntimeError: at the call of an op that the chosen backend cannot serve on the tensor's device.
    """
    check_choice("name", name, BACKENDS)
    global _backend
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def has_native(op: str, device_type: str) -> bool:
    """Whether a C++ or CUDA kernel is registered for `op` on that kind of device."""
    key = _KEYS.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", key)


def _why_not_native(device_type: str) -> str:
    if device_type not in _KEYS:
        return f"no kernels are written for {device_type}"
    return _extension.absent[device_type] or "no kernel is written for this op and device"


def _why_not_triton(op: Op, device: torch.device) -> str | None:
    """None where a Triton kernel can serve `op` on the device."""
    if op.triton is None:
        return "no Triton kernel is written for this op"
    if not _TRITON_INSTALLED:
        return "Triton is not installed"
    if INTERPRETING:
        return None
    if device.type != "cuda":
        return "Triton serves CUDA; elsewhere only its interpreter runs, for tests (TRITON_INTERPRET=1)"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    major = torch.cuda.get_device_properties(device).major
    return (
        None if major >= TRITON_CAPABILITY else f"the GPU's compute capability is below {TRITON_CAPABILITY}.0"
    )


def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active.

    Kernels with their own autograd give silently wrong (zero) tangents there; plain PyTorch is right.
    """
    return _functorch_level() is not None or forward_ad._current_level >= 0


def use_reference() -> bool:
    """Whether the plain reference serves this call; if not, `serving` says what does."""
    return _backend == "reference" or is_transformed()


def serving(op: Op, tensor: Tensor) -> Op:
    """The overload of `op` that is to serve a call with this leading tensor.

    Raises:
        RuntimeError: the chosen backend cannot.
    """
    if _backend == "auto" and op.serves_cpu and tensor.is_cpu:
        return op
    device = tensor.device
    if _backend == "native" or (_backend == "auto" and device.type in op.native_on):
        if device.type in op.native_on:
            return op
        got = _why_not_native(device.type)
    elif _backend == "auto":
        # The interpreter is thousands of times slower than the reference: by name only.
        by_triton = device.type == "cuda" and not INTERPRETING and _why_not_triton(op, device) is None
        return op.triton if by_triton else op
    else:
        got = _why_not_triton(op, device)
        if got is None:
            return op.triton
    kind = {"native": "native", "triton": "Triton"}[_backend]
    raise RuntimeError(
        f"backend {_backend!r}: expected a {kind} kernel for {op.__name__} on {device.type}, got none: {got}"
    )


def backends() -> dict[str, dict[str, dict[str, str]]]:
    """Which implementation serves each op on each device, and why the others do not.

    Returns:
        {op: {"cpu" | "cuda": {"serves": "native" | "triton" | "reference", "native": reason, "triton": reason}}},
        where a reason is "available" or says what is missing, and "serves" is what the choice in force
        (`use_backend`) comes to, "reference" where it cannot be met. On the CPU, "isa" names the instruction set in
        force.
    """
    report: dict[str, dict[str, dict[str, str]]] = {}
    for name in _forward_ops:
        op = _ops[name]
        report[name] = {}
        for device in _KEYS:
            native = device in op.native_on
            missing = _why_not_triton(op, torch.device(device)) if _there(device) else "no CUDA device"
            order = ("native", "triton") if _backend == "auto" else (_backend,)
            can = {"native": native, "triton": missing is None and not (_backend == "auto" and INTERPRETING)}
            entry = {
                "serves": next((b for b in order if can.get(b)), "reference"),
                "native": "available" if native else _why_not_native(device),
                "triton": missing or "available",
            }
            if device == "cpu" and native:
                entry["isa"] = _extension.active_isa()
            report[name][device] = entry
    return report


def _there(device_type: str) -> bool:
    """Whether a device can be asked for its properties, or no question will come to that."""
    return device_type != "cuda" or torch.version.cuda is None or torch.cuda.is_available()


# ---- how an op is registered ----------------------------------------------------------------------------


class Op:
    """One overload of an op of the namespace, and the shortest way into the dispatcher that is right.

    torch.library's own autograd kernels cost some 40 us a call in Python. Where nothing but autograd watches a call,
    the same formula runs as a `torch.autograd.Function` of our own and the kernel is called below autograd, for a
    third of that. Compilers, tracers, autocast, tensor subclasses and modes get the dispatcher's op.

    The default overload has the reference and the native kernels; `triton`, where there is one, is another `Op`.
    """

    def __init__(self, name: str, reference: Callable, overload: str = "default") -> None:
        self.__name__ = name
        self.reference = reference
        self.overload = overload
        self.has_autocast = False
        self.triton: Op | None = None
        self.native_on = frozenset(d for d in _KEYS if overload == "default" and has_native(name, d))
        self.serves_cpu = "cpu" in self.native_on
        self._overload = self.dispatcher_op._op  # without the wrapper's look-ups
        self._differentiable: Callable | None = None  # overload with its gradient

    @property
    def dispatcher_op(self) -> Callable:
        return getattr(getattr(getattr(torch.ops, NAMESPACE), self.__name__), self.overload)

    @property
    def qualified(self) -> str:
        """Its name as torch.library takes it."""
        suffix = "" if self.overload == "default" else f".{self.overload}"
        return f"{NAMESPACE}::{self.__name__}{suffix}"

    @property
    def overloads(self) -> tuple[Op, ...]:
        """This one and Triton's."""
        return (self,) if self.triton is None else (self, self.triton)

    def set_gradient(self, backward: Callable, setup_context: Callable) -> None:
        """What `torch.library.register_autograd` takes, for the short way."""
        overload = self._overload

        def forward(ctx, *args):
            with _below_autograd():
                results = overload(*args)
            setup_context(ctx, args, results)
            return results

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        function = type(f"{self.__name__}_{self.overload}", (torch.autograd.Function,), members)
        # Function.apply itself only adds what torch.func needs, which never comes here.
        self._differentiable = super(torch.autograd.Function, function).apply

    def __call__(self, *args: object) -> object:
        if (
            _is_compiling()
            or has_torch_function(args)
            or _dispatch_modes()
            or _is_tracing()
            or (self.has_autocast and autocast_is_on(args[0].device.type))
        ):
            return self.dispatcher_op(*args)
        if _is_grad_enabled() and _any_requires_grad(*args):
            return (self._differentiable or self.dispatcher_op)(*args)
        with _below_autograd():
            return self._overload(*args)


def define(
    name: str,
    schema: str,
    reference: Callable,
    *,
    layout_of: int | None = 0,
    listed: bool = True,
    triton: str | None = None,
) -> Op:
    """Define op `name`; `reference` is its kernel on every device that has none of its own.

    Args:
        name: without the namespace.
        schema: arguments and results, as in "(Tensor x) -> Tensor", a tensor first. No keyword-only arguments:
            they do not pass an autocast kernel.
        reference: plain PyTorch; must not return its inputs or views of them.
        layout_of: position of the argument whose memory format the 4-D or 5-D results take, as the native kernels
            and the fake kernel have it. None: results stay as the reference makes them.
        listed: whether `backends()` reports it (backward ops follow their forward op).
        triton: name of the module whose function `name` is the Triton kernel, of the same arguments and results.
            It is imported at the first call.

    Returns:
        The op, for formulas of gradients. Public functions call `serve` instead, which also knows the reference.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = _ops[name] = Op(name, reference if layout_of is None else _laid_out(reference, layout_of))
    torch.library.impl(qualified, "CompositeExplicitAutograd", op.reference)
    if triton is not None:
        torch.library.define(f"{qualified}.triton", schema, tags=(torch.Tag.pt2_compliant_tag,))
        op.triton = Op(name, op.reference, "triton")
        for device, key in _KEYS.items():
            if device == "cuda" or INTERPRETING:
                torch.library.impl(op.triton.qualified, key, _triton_kernel(triton, name))
    if listed:
        _forward_ops.append(name)
    return op


def _triton_kernel(module: str, name: str) -> Callable:
    def kernel(*args: object) -> object:
        device = args[0].device
        # Triton launches on the current device and stream.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return getattr(importlib.import_module(module), name)(*args)

    return kernel


def _laid_out(reference: Callable, layout_of: int) -> Callable:
    """`reference` with its 4-D or 5-D results in the memory format of one argument."""

    def in_format(*args: object) -> object:
        results = reference(*args)
        if is_transformed():  # strides mean nothing on a batched tensor
            return results
        wanted = memory_format(args[layout_of])

        def lay_out(r: object) -> object:
            return r.contiguous(memory_format=wanted) if isinstance(r, Tensor) and r.dim() in (4, 5) else r

        return tuple(lay_out(r) for r in results) if isinstance(results, tuple) else lay_out(results)

    return in_format


def serve(name: str, *args: object) -> object:
    """Call op `name` by whichever implementation is to serve it; the first argument is its leading tensor."""
    op = _ops[name]
    return op.reference(*args) if use_reference() else serving(op, args[0])(*args)


def same(ctx, op: Op) -> Op:
    """In the formula of a gradient: `op` by the overload that served the forward call."""
    return op.triton if ctx.overload == "triton" and op.triton is not None else op


def autocast_is_on(device_type: str) -> bool:
    """Whether torch.autocast is active for that kind of device; some kinds, as meta, have none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def register_fake(name: str, function: Callable) -> None:
    """Shapes, dtypes and strides of the results without any data: what compile and export trace with.

    It also serves tensors on the meta device; mixed with others they are refused, for no result would be right.
    """

    def on_one_device(*args: object, **kwargs: object) -> object:
        devices = {a.device for a in args if isinstance(a, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(
                f"{name}: expected tensors on one device, got {' and '.join(map(str, devices))}"
            )
        return function(*args, **kwargs)

    for op in _ops[name].overloads:
        torch.library.register_fake(op.qualified, on_one_device)


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """The gradient of op `name`, made of ops that have gradients themselves; `same` picks their overload."""

    def setup_of(overload: str) -> Callable:
        def setup(ctx, inputs: Sequence[object], output: object) -> None:
            ctx.overload = overload
            setup_context(ctx, inputs, output)

        return setup

    for op in _ops[name].overloads:
        setup = setup_of(op.overload)
        torch.library.register_autograd(op.qualified, backward, setup_context=setup)
        op.set_gradient(backward, setup)


def register_autocast(name: str) -> None:
    """Under autocast, cast every float32 or half tensor argument to the autocast dtype of its device.

    torch.library.register_autocast takes one fixed dtype, which is wrong as soon as a user asks for another.
    """

    def cast(value: object, device_type: str) -> object:
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(device_type)) if eligible else value

    def kernel_for(overload: Callable, device_type: str) -> Callable:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{_KEYS[device_type]}"))

        def kernel(*args: object) -> object:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return overload(*pytree.tree_map(lambda a: cast(a, device_type), args))

        return kernel

    for op in _ops[name].overloads:
        op.has_autocast = True
        for device_type, key in _KEYS.items():
            kernel = kernel_for(op.dispatcher_op, device_type)
            torch.library.impl(op.qualified, f"Autocast{key}", kernel)


def register_autograd_by_reference(name: str, reference: Callable) -> None:
    """The gradient of a backward op, by differentiating its plain PyTorch twin: correct, and seldom needed.

    Without it a second derivative through the op would silently be zero.
    """

    def setup_context(ctx, inputs: Sequence[object], output: object) -> None:
        ctx.tensor_at = [isinstance(i, Tensor) for i in inputs]
        ctx.others = [None if is_tensor else i for i, is_tensor in zip(inputs, ctx.tensor_at, strict=True)]
        ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)))

    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [
                next(saved) if is_tensor else other
                for is_tensor, other in zip(ctx.tensor_at, ctx.others, strict=True)
            ]
            # A view of each wanted input is a node of its own, so only paths through `reference` count.
            inputs = [i.view_as(i) if w else i for i, w in zip(inputs, ctx.needs_input_grad, strict=True)]
            outputs = reference(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            wanted = [i for i, w in zip(inputs, ctx.needs_input_grad, strict=True) if w]
            found = iter(
                torch.autograd.grad(
                    [o for o, _ in pairs],
                    wanted,
                    [g for _, g in pairs],
                    allow_unused=True,
                    create_graph=create_graph,
                )
                if pairs
                else [None] * len(wanted)
            )
        return tuple(next(found) if w else None for w in ctx.needs_input_grad)

    register_autograd(name, backward, setup_context)
