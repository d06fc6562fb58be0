"""The contract that every op passes, once for all ops.

A test module describes its op in an `Op` and calls `contract(op)` at module level:

    globals().update(contract(Op(...)))

which defines one test per point of the contract. The points:
 1. values against the reference in float64;  2. exact inputs bit for bit;  3. gradients against the reference;
 4. gradcheck and gradgradcheck in double;    5. torch.library.opcheck;     6. torch.compile(fullgraph=True);
 7. autocast;  8. deterministic mode on scribbled memory;  9. strided and zero-size inputs (they are among the
 samples, and a test makes sure of it);      10. every wrong input names the argument, what was expected, what came.
Also: the same bits for every number of threads; forward mode, vmap, torch.func and their compiled forms.

The points marked `triton` also run with ASEGNET_FAST_BACKEND=triton in Triton's interpreter (tests/test_triton.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import asegnet_fast as af
from asegnet_fast.ops import _library
from tests import tolerances
from tests.examples import few_samples

#: Where the numbers are checked: a device, and for ops with a Triton kernel a choice of backend.
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
BY_TRITON = pytest.param("cuda-triton", marks=pytest.mark.gpu)
_M_PERTURB = -6  # of malloc.h
#: Elements that parallel_for gives to several threads: some times kGrain of csrc/common/tensor.h.
SHARED_OUT = 4 * 32768
HALVES = (torch.bfloat16, torch.float16)
Case = tuple[str, tuple]


@dataclass(frozen=True)
class Op:
    """One op as the contract sees it.

    name: the dispatcher op. call: the function under test, taking a sample's arguments (it may be the public
    function behind an adapter). reference: plain PyTorch, same arguments. samples(dtype, device): (name, args)
    pairs. gradients_of: positions of the arguments that have a gradient. outputs: positions of the results that
    are compared with tolerance; others must be equal. exact: whether results are selections or copies.
    integers: samples whose sums are exact (point 2). large: samples that are shared out among several threads; None
    where no kernel is. small: names of samples for the slow points (4 to 7). few: how the names of the samples
    begin that a quick run in Triton's interpreter takes; between them they have every option.
    smooth: moves a sample away from kinks, infinities and ties, where a finite difference means nothing.
    errors: (id, thunk, exception, the words that must appear).
    """

    name: str
    call: Callable
    reference: Callable
    samples: Callable[..., Iterator[Case]]
    gradients_of: Sequence[int]
    errors: Sequence[tuple[str, Callable[[], Any], type[Exception], str]]
    outputs: Sequence[int] = (0,)
    exact: bool = False
    integers: Callable[..., Iterator[Case]] | None = None
    large: Callable[..., Iterator[Case]] | None = None
    small: Sequence[str] = ()
    few: Sequence[str] = ()
    smooth: Callable[[tuple], tuple] = lambda args: args
    autocast: Callable[[], None] | None = None
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, *HALVES)
    gradient_dtypes: Sequence[torch.dtype] = field(default=(torch.float32, torch.float64, *HALVES))


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def to_double(args: tuple) -> tuple:
    def widen(a: Any) -> Any:
        return a.detach().double() if isinstance(a, Tensor) and a.is_floating_point() else a

    return pytree.tree_map(widen, args)


def assert_close(got: Tensor, exact: Tensor, plain: Tensor | None, dtype: torch.dtype, what: str) -> None:
    """`got` against float64 `exact`: by a relative tolerance, or against `plain`'s own error at a half dtype."""
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if got.numel() == 0:
        return
    got, exact = got.double(), exact.double()
    assert torch.equal(got.isnan(), exact.isnan()), f"{what}: NaN in other places"
    assert torch.equal(got.isposinf(), exact.isposinf()), f"{what}: +inf in other places"
    assert torch.equal(got.isneginf(), exact.isneginf()), f"{what}: -inf in other places"
    finite = exact.isfinite()
    if not finite.any():
        return
    scale = exact[finite].abs().max().item()
    error = (got - exact)[finite].abs().max().item()
    if dtype in HALVES:
        own = (plain.double() - exact)[finite].abs().nan_to_num(0.0, 0.0, 0.0).max().item()
        allowed = tolerances.HALF_FACTOR * own + tolerances.ROUNDOFF[dtype] * scale
    else:
        allowed = tolerances.RELATIVE[dtype] * scale
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g} (scale {scale:.3g})"


def layout(t: Tensor) -> tuple[int, ...]:
    """The strides that mean something: those of sides longer than 1, in a tensor that is not empty."""
    return (
        tuple(stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1)
        if t.numel()
        else ()
    )


@contextlib.contextmanager
def deterministic_on_scribbled_memory() -> Iterator[None]:
    """torch's deterministic mode, which fills what `torch.empty` returns, and glibc's own filling of fresh memory.

    The kernels take theirs past torch.empty; an element they leave out then holds 0xfe bytes.
    """
    perturb = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    torch.use_deterministic_algorithms(True)
    perturb(_M_PERTURB, 1)
    try:
        yield
    finally:
        perturb(_M_PERTURB, 0)
        torch.use_deterministic_algorithms(False)


def with_gradients(op: Op, args: tuple) -> tuple:
    """The arguments, with those that have a gradient made leaves that keep their strides."""
    args = list(args)
    for i in op.gradients_of:
        args[i] = args[i].detach().requires_grad_()
    return tuple(args)


def gradients(op: Op, call: Callable, args: tuple, grads: Sequence[Tensor]) -> tuple:
    args = with_gradients(op, args)
    results = as_tuple(call(*args))
    wanted = [args[i] for i in op.gradients_of]
    outs = [results[i] for i in op.outputs]
    found = torch.autograd.grad(
        outs, wanted, [g.to(o.dtype) for g, o in zip(grads, outs, strict=True)], allow_unused=True
    )
    return tuple(torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True))


def random_grads(op: Op, results: tuple) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [
        torch.randn(results[i].shape, generator=g, dtype=torch.float64).to(results[i].device)
        for i in op.outputs
    ]


def bits_of(t: Tensor) -> Tensor:
    """As integers, so that NaN and the sign of zero count."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(t.element_size())
    return t.detach().contiguous().view(integer) if integer and t.is_floating_point() else t


def flat(value: Any) -> list[Tensor]:
    """The tensors of nested tuples."""
    return [value] if isinstance(value, Tensor) else [t for v in value for t in flat(v)]


def assert_all_close(got: Sequence[Tensor], expected: Sequence[Tensor], what: str | None = None) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-11, equal_nan=True, msg=what and (lambda m: f"{what}: {m}")
        )


@contextlib.contextmanager
def backend_of(target: str) -> Iterator[str]:
    """Within the block the backend of an entry of `DEVICES` or `BY_TRITON` serves; gives the device."""
    device, _, backend = target.partition("-")
    with af.use_backend(backend) if backend else contextlib.nullcontext():
        yield device


def on_its_backend(test: Callable) -> Callable:
    """A test of (device, dtype) that takes an entry of `DEVICES` or `BY_TRITON` for the device."""

    @functools.wraps(test)
    def run(device: str, dtype: torch.dtype) -> None:
        with backend_of(device) as real:
            test(real, dtype)

    return run


def cases(op: Op, source: Callable[..., Iterator[Case]], *where: Any) -> Iterator[Case]:
    """The samples of `source`, or the few."""
    for name, args in source(*where):
        if not few_samples() or name.startswith(tuple(op.few)):
            yield name, args


def names_of(op: Op) -> list[str]:
    return [name for name, _ in op.samples(torch.float32)]


def sample(op: Op, name: str, dtype: torch.dtype = torch.float32) -> tuple:
    return next(args for n, args in op.samples(dtype) if n == name)


#: Every op that has passed through `contract`, by name: what tests of all ops run over.
OPS: dict[str, Op] = {}


def import_all() -> dict[str, Op]:
    """`OPS`, complete: the test modules of this folder describe the ops."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"{__package__}.{path.stem}")
    return OPS


class DispatcherCalls(TorchDispatchMode):
    """Within the block, keeps (op, arguments) of every call of ours that reaches a kernel, backward ops included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "asegnet_fast":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def contract(op: Op) -> dict[str, Callable]:
    """One test function for each point, for a test module's globals()."""
    OPS[op.name] = op
    tests: dict[str, Callable] = {}
    names = names_of(op)
    small = tuple(op.small) or tuple(names[:2])
    gradient_dtypes = op.gradient_dtypes
    if few_samples():
        small, gradient_dtypes = small[:1], [d for d in gradient_dtypes if d != torch.float16]
    has_triton = _library._ops[op.name].triton is not None
    devices = (*DEVICES, BY_TRITON) if has_triton else DEVICES

    def test(function: Callable) -> Callable:
        tests[f"test_{op.name}_{function.__name__}"] = function
        return function

    def triton(function: Callable) -> Callable:
        return pytest.mark.triton(function) if has_triton else function

    @test
    @triton
    @pytest.mark.kernels
    @pytest.mark.parametrize("dtype", op.dtypes, ids=str)
    @pytest.mark.parametrize("device", devices)
    @on_its_backend
    def values(device: str, dtype: torch.dtype) -> None:
        for name, args in cases(op, op.samples, dtype, device):
            got, plain = as_tuple(op.call(*args)), as_tuple(op.reference(*args))
            exact = as_tuple(op.reference(*to_double(args)))
            for i, (g, p, e) in enumerate(zip(got, plain, exact, strict=True)):
                what = f"{op.name}[{name}] result {i}"
                assert g.dtype == p.dtype, f"{what}: {g.dtype}, expected {p.dtype}"
                if op.exact or i not in op.outputs:
                    assert torch.equal(g.double().nan_to_num(nan=7e9), p.double().nan_to_num(nan=7e9)), what
                else:
                    assert_close(g, e, p, dtype, what)

    @test
    @triton
    @pytest.mark.kernels
    @pytest.mark.parametrize("dtype", op.dtypes, ids=str)
    @pytest.mark.parametrize("device", devices)
    @on_its_backend
    def exact_inputs_bit_for_bit(device: str, dtype: torch.dtype) -> None:
        for name, args in cases(op, op.integers or op.samples, dtype, device):
            got, plain = as_tuple(op.call(*args)), as_tuple(op.reference(*args))
            for i, (g, p) in enumerate(zip(got, plain, strict=True)):
                assert torch.equal(g.nan_to_num(nan=7.0), p.nan_to_num(nan=7.0)), (
                    f"{op.name}[{name}] result {i}"
                )

    @test
    @triton
    @pytest.mark.kernels
    @pytest.mark.parametrize("dtype", gradient_dtypes, ids=str)
    @pytest.mark.parametrize("device", devices)
    @on_its_backend
    def gradients_against_reference(device: str, dtype: torch.dtype) -> None:
        for name, args in cases(op, op.samples, dtype, device):
            grads = random_grads(op, as_tuple(op.call(*args)))
            grads = [g.to(dtype).double() for g in grads]  # the same values for every side
            got = gradients(op, op.call, args, grads)
            plain = gradients(op, op.reference, args, grads)
            exact = gradients(op, op.reference, to_double(args), grads)
            for i, g, p, e in zip(op.gradients_of, got, plain, exact, strict=True):
                what = f"{op.name}[{name}] gradient of argument {i}"
                assert g.dtype == args[i].dtype, f"{what}: {g.dtype}"
                if op.exact:
                    assert torch.equal(g, p), what
                else:
                    assert_close(g, e, p, dtype, what)

    @test
    @pytest.mark.parametrize("name", small)
    def gradcheck(name: str) -> None:
        args = with_gradients(op, op.smooth(to_double(sample(op, name))))
        outs = lambda *a: tuple(as_tuple(op.call(*a))[i] for i in op.outputs)  # noqa: E731
        assert torch.autograd.gradcheck(outs, args, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(
            outs, args, atol=1e-8, fast_mode=True, check_fwd_over_rev=True
        )  # one random direction: seconds, not minutes

    @test
    @triton
    @pytest.mark.parametrize("name", small)
    def opcheck(name: str) -> None:
        overload = "triton" if _library.INTERPRETING else "default"
        handle = getattr(getattr(torch.ops.asegnet_fast, op.name), overload)
        with DispatcherCalls() as calls:
            op.call(*op.smooth(to_double(sample(op, name))))
        seen = [args for func, args in calls.seen if func is handle]
        assert seen, f"{op.name} was not reached through the dispatcher"
        args = [
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in seen[0]
        ]
        torch.library.opcheck(handle, tuple(args))

    @test
    @triton
    @pytest.mark.parametrize("name", small)
    def compiles_in_one_graph(name: str) -> None:
        args = sample(op, name)
        compiled = torch.compile(op.call, fullgraph=True, backend="aot_eager")
        for c, e in zip(as_tuple(compiled(*args)), as_tuple(op.call(*args)), strict=True):
            assert torch.equal(c.nan_to_num(nan=7.0), e.nan_to_num(nan=7.0))
        grads = random_grads(op, as_tuple(op.call(*args)))
        for c, e in zip(
            gradients(op, compiled, args, grads), gradients(op, op.call, args, grads), strict=True
        ):
            assert torch.equal(c, e)

    @test
    def autocast() -> None:
        if op.autocast is not None:
            op.autocast()
            return
        args = sample(op, small[0])
        before = [r.dtype for r in as_tuple(op.call(*args))]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert [r.dtype for r in as_tuple(op.call(*args))] == before

    @test
    @triton
    def deterministic_mode_fills_no_hole() -> None:
        for name, args in cases(op, op.samples, torch.float32):
            plain = as_tuple(op.call(*args))
            grads = random_grads(op, plain)
            before = (*plain, *gradients(op, op.call, args, grads))
            with deterministic_on_scribbled_memory():
                after = (*as_tuple(op.call(*args)), *gradients(op, op.call, args, grads))
            for i, (b, a) in enumerate(zip(before, after, strict=True)):
                assert torch.equal(b.nan_to_num(nan=7.0), a.nan_to_num(nan=7.0)), (
                    f"{op.name}[{name}] tensor {i}"
                )

    @test
    def samples_are_awkward_enough() -> None:
        tensors = [
            (name, a) for name, args in op.samples(torch.float32) for a in args if isinstance(a, Tensor)
        ]
        assert any(t.numel() == 0 for _, t in tensors), "no zero-size sample"
        assert any(not t.is_contiguous() for _, t in tensors), "no non-contiguous sample"
        assert any(t.dim() >= 2 and t.shape[-1] != t.shape[-2] for _, t in tensors), "only square samples"

    @test
    @triton
    @pytest.mark.kernels
    def non_contiguous_gradient() -> None:
        for name in small:
            args = sample(op, name)
            results = as_tuple(op.call(*args))
            ones = [torch.ones((), dtype=torch.float64).expand(results[i].shape) for i in op.outputs]
            dense = [o.contiguous() for o in ones]
            for a, b in zip(
                gradients(op, op.call, args, ones), gradients(op, op.call, args, dense), strict=True
            ):
                assert torch.equal(a, b)

    @test
    @pytest.mark.kernels
    @pytest.mark.parametrize("dtype", op.dtypes, ids=str)
    def same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
        """And from run to run, forward and backward."""
        cases = [*op.samples(dtype), *(op.large(dtype) if op.large else ())]
        before = torch.get_num_threads()
        seen = []
        try:
            for threads in (1, 2, 3, 3):
                torch.set_num_threads(threads)
                out = []
                for name, args in cases:
                    results = as_tuple(op.call(*args))
                    grads = [g.to(dtype).double() for g in random_grads(op, results)]
                    found = (*results, *gradients(op, op.call, args, grads))
                    out += [(f"{name}, tensor {i}", t) for i, t in enumerate(found)]
                seen.append(out)
        finally:
            torch.set_num_threads(before)
        assert op.large is None or max(t.numel() for _, t in seen[0]) >= SHARED_OUT
        for other in seen[1:]:
            for (name, a), (_, b) in zip(seen[0], other, strict=True):
                assert torch.equal(bits_of(a), bits_of(b)), f"{op.name}[{name}]"

    def separated(name: str) -> tuple[tuple, list[Tensor], Callable, Callable]:
        """Arguments of a sample, those with a gradient, and both sides as functions of these alone."""
        args = op.smooth(to_double(sample(op, name)))

        def side(function: Callable) -> Callable:
            def of_wanted(*wanted: Tensor) -> tuple[Tensor, ...]:
                given = list(args)
                for i, w in zip(op.gradients_of, wanted, strict=True):
                    given[i] = w
                results = as_tuple(function(*given))
                return tuple(results[i] for i in op.outputs)

            return of_wanted

        return args, [args[i] for i in op.gradients_of], side(op.call), side(op.reference)

    @test
    @pytest.mark.parametrize("name", small)
    def forward_mode(name: str) -> None:
        """jvp, dual numbers and jacfwd give the reference's tangents, not zeros."""
        _, wanted, ours, theirs = separated(name)
        tangents = tuple(map(torch.randn_like, wanted))
        values, pushed = torch.func.jvp(ours, tuple(wanted), tangents)
        plain_values, plain_pushed = torch.func.jvp(theirs, tuple(wanted), tangents)
        assert_all_close((*values, *pushed), (*plain_values, *plain_pushed))
        assert any(bool(t.any()) for t in pushed)
        with forward_ad.dual_level():
            duals = ours(*map(forward_ad.make_dual, wanted, tangents))
            assert_all_close([forward_ad.unpack_dual(d).tangent for d in duals], plain_pushed)
        every = tuple(range(len(wanted)))
        forward, backward = torch.func.jacfwd(ours, every)(*wanted), torch.func.jacrev(ours, every)(*wanted)
        assert_all_close(flat(forward), flat(torch.func.jacrev(theirs, every)(*wanted)))
        assert_all_close(flat(backward), flat(forward))

    @test
    @triton
    @pytest.mark.parametrize("name", small)
    def reverse_mode(name: str) -> None:
        """grad, vjp and hessian give what the kernels' own first and second derivatives are."""
        args, wanted, ours, theirs = separated(name)
        outs, pull = torch.func.vjp(ours, *wanted)
        grads = [torch.randn_like(o) for o in outs]
        assert_all_close(pull(tuple(grads)), gradients(op, op.call, args, grads))
        assert_all_close(pull(tuple(grads)), torch.func.vjp(theirs, *wanted)[1](tuple(grads)))
        total = lambda f: lambda *w: sum(o.square().sum() for o in f(*w))  # noqa: E731
        leaves = [w.detach().requires_grad_() for w in wanted]
        first = torch.autograd.grad(total(ours)(*leaves), leaves, create_graph=True)
        every = tuple(range(len(wanted)))
        assert_all_close(torch.func.grad(total(ours), every)(*wanted), first)
        second = torch.autograd.grad(first[0].sum(), leaves[0])[0]
        hessian = torch.func.hessian(total(ours))(*wanted)
        assert_all_close([hessian], [torch.func.hessian(total(theirs))(*wanted)])
        assert_all_close([hessian.flatten(0, leaves[0].dim() - 1).sum(0)], [second])
        assert bool(second.any())

    @test
    @pytest.mark.parametrize("name", small)
    def batched(name: str) -> None:
        """vmap, over any axis, alone and over the gradient."""
        _, wanted, ours, theirs = separated(name)
        total = lambda f: lambda *w: sum(o.square().sum() for o in f(*w))  # noqa: E731
        every = tuple(range(len(wanted)))
        for axis in (0, -1):
            stacked = [torch.stack([w, w + 0.125], axis) for w in wanted]
            mapped = torch.func.vmap(ours, in_dims=axis)(*stacked)
            mapped_grads = torch.func.vmap(torch.func.grad(total(ours), every), in_dims=axis)(*stacked)
            for k in range(2):
                single = [s.select(axis, k) for s in stacked]
                assert_all_close([m[k] for m in mapped], theirs(*single))
                assert_all_close([m[k] for m in mapped_grads], torch.func.grad(total(theirs), every)(*single))

    @test
    def compiled_transforms() -> None:
        """The same under torch.compile."""
        _, wanted, ours, theirs = separated(small[0])
        total = lambda f: lambda *w: sum(o.square().sum() for o in f(*w))  # noqa: E731
        tangents = tuple(map(torch.randn_like, wanted))
        transforms = {
            "grad": lambda f: lambda *w: torch.func.grad(total(f))(*w),
            "jvp": lambda f: lambda *w: torch.func.jvp(f, w, tangents)[1],
            "vmap": lambda f: lambda *w: torch.func.vmap(f)(*(torch.stack([t, t + 0.125]) for t in w)),
        }
        for kind, transform in transforms.items():
            torch._dynamo.reset()
            compiled = torch.compile(transform(ours), backend="aot_eager")(*wanted)
            assert_all_close(flat(compiled), flat(transform(theirs)(*wanted)), kind)

    @test
    @triton
    @pytest.mark.kernels
    def backends_agree() -> None:
        for name, args in cases(op, op.samples, torch.float32):
            with af.use_backend("reference"):
                plain = as_tuple(op.call(*args))
            for i, (g, p) in enumerate(zip(as_tuple(op.call(*args)), plain, strict=True)):
                assert layout(g) == layout(p), f"{op.name}[{name}] strides of result {i}"
                torch.testing.assert_close(g, p, rtol=2e-5, atol=2e-5, equal_nan=True)

    @test
    @pytest.mark.parametrize("case", op.errors, ids=lambda c: c[0])
    def wrong_input(case: tuple) -> None:
        _, thunk, exception, words = case
        with pytest.raises(exception) as caught:
            thunk()
        message = str(caught.value)
        assert words in message, message
        assert "expected" in message and "got" in message, message

    return tests
