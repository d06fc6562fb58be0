"""Malformed calls of every op: each must end in a Python exception or in a right result.

    python -m tests.fuzz_ops --calls 10000 --seed 0

Calls start from those that the contract's samples make, public functions and dispatcher ops, backward ones too; then
one to three arguments are spoiled. They run in a child process which writes down each call before it makes it, so
that a crash or a hang names its call; `--seed S --only I` makes that one call again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import asegnet_fast as af
from asegnet_fast.ops import _library
from tests.ops import contract
from tests.ops.memory import arranged

#: What a refused call may raise; torch's NotImplementedError and OutOfMemoryError are RuntimeErrors.
REFUSALS = (TypeError, ValueError, RuntimeError)
#: At the dispatcher, where plain PyTorch serves sparse and meta tensors unchecked, and where `nn.functional` leaves a
#: call to torch with torch's own complaints.
UNCHECKED_REFUSALS = (*REFUSALS, IndexError, AttributeError, OverflowError)
#: Seconds after which a call counts as hanging. Huge sizes that are accepted would run for hours.
PATIENCE = 60
#: A call may take this much more address space than the process has at its start. AddressSanitizer needs terabytes of
#: it and limits allocations by itself.
MEMORY = 1 << 30
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


# ---- valid calls ----------------------------------------------------------------------------------------


class Target(NamedTuple):
    name: str
    function: Callable
    reference: Callable
    args: tuple
    exact: bool  # results are selections or copies
    gradients_of: (
        tuple[int, ...] | None
    )  # positions whose gradients are compared; None: of a dispatcher op, none

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        unchecked = self.gradients_of is None or self.name.startswith("nn.functional")
        return UNCHECKED_REFUSALS if unchecked else REFUSALS


def by_reference(function: Callable) -> Callable:
    def call(*args: object) -> object:
        with af.use_backend("reference"):
            return function(*args)

    return call


def more_public_calls() -> list[tuple[str, Callable, tuple, bool]]:
    """Public functions that the contract does not call itself."""
    logits, target = torch.randn(2, 3, 5, 7), torch.randint(0, 3, (2, 5, 7))
    x = torch.randn(2, 3, 5, 7)
    _, code = af.max_pool2x2(x)
    indices = af.codes_to_indices(code, (5, 7))
    losses = (
        (af.tversky_loss, (0.3, 0.7, 1e-8, "image", True, None, [1.0, 2.0, 3.0])),
        (af.focal_tversky_loss, (0.3, 0.7, 4 / 3, 1e-8, "batch", False, 1, None)),
        (af.dice_loss, ("literal", 1e-8, "image", True, None, None)),
        (af.generalized_dice_loss, (1.19e-7, "image", True, None, torch.ones(3))),
        (af.cross_entropy_loss, (1, torch.ones(3))),
    )
    return [
        *((f.__name__, f, (logits, target, *options), False) for f, options in losses),
        ("codes_to_indices", af.codes_to_indices, (code, (5, 7)), True),
        ("indices_to_codes", af.indices_to_codes, (indices, (5, 7)), True),
        ("nn.functional.max_pool2d", af.nn.functional.max_pool2d, (x, 2, 2, 0, 1, True), True),
        ("nn.functional.max_unpool2d", af.nn.functional.max_unpool2d, (code.float(), code, 2), True),
        ("nn.functional.max_unpool2d", af.nn.functional.max_unpool2d, (x[..., :2, :3], indices, 2), True),
    ]


def small(args: Sequence[object]) -> bool:
    return all(a.numel() <= 2000 for a in args if isinstance(a, Tensor))


def targets() -> list[Target]:
    found: dict[str, list[Target]] = {}
    for op in contract.import_all().values():
        for dtype in op.dtypes:
            for _, args in op.samples(dtype):
                if not small(args):
                    continue
                with contract.DispatcherCalls() as calls:
                    results = contract.as_tuple(op.call(*args))
                    contract.gradients(op, op.call, args, contract.random_grads(op, results))
                public = f"{op.name} (public)"
                made = [
                    Target(public, op.call, by_reference(op.call), args, op.exact, tuple(op.gradients_of))
                ]
                for f, recorded in calls.seen:
                    name = f.overloadpacket.__name__
                    made.append(Target(name, f, _library._ops[name].reference, recorded, op.exact, None))
                for target in made:
                    if small(target.args):
                        found.setdefault(target.name, []).append(target)
    for name, function, args, exact in more_public_calls():
        found.setdefault(name, []).append(Target(name, function, by_reference(function), args, exact, (0,)))
    # The same number of turns for every function, whatever its samples are.
    most = max(map(len, found.values()))
    return [some[i % len(some)] for i in range(most) for some in found.values()]


# ---- spoiling -------------------------------------------------------------------------------------------

Random = random.Random
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8),
    *(torch.int16, torch.int32, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.uint16),
)
INTEGERS = (
    -1,
    0,
    1,
    2,
    3,
    4,
    7,
    100,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
    2**63,
)
NUMBERS = (0.0, -0.0, -1.0, 0.5, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 10**400)
STRANGERS = (None, True, 1, 1.5, "image", "x", [1.0], (), {}, object(), torch.zeros(()), torch.float32)
LARGE = (2**20, 2**31, 2**32, 2**33, 2**40)


def allocated(shape: Sequence[int], dtype: torch.dtype, random_: Random) -> Tensor:
    return torch.randint(0, 4, tuple(shape), generator=generator(random_)).to(dtype)


def generator(random_: Random) -> torch.Generator:
    return torch.Generator().manual_seed(random_.randrange(2**31))


def other_rank(t: Tensor, r: Random) -> Tensor:
    return r.choice(
        (lambda: t.unsqueeze(r.randint(0, t.dim())), lambda: t.flatten(), lambda: t.sum(0) if t.dim() else t)
    )()


def other_size(t: Tensor, r: Random) -> Tensor:
    if t.dim() == 0:
        return t.expand(2)
    shape = list(t.shape)
    at = r.randrange(t.dim())
    shape[at] = max(0, shape[at] + r.choice((-2, -1, 1, 2, 5, -shape[at], shape[at])))
    return allocated(shape, t.dtype, r)


def other_dtype(t: Tensor, r: Random) -> Tensor:
    return t.to(r.choice(DTYPES))


def meta(t: Tensor, r: Random) -> Tensor:
    return t.to("meta")


def expanded(t: Tensor, r: Random) -> Tensor:
    """Stride 0 along some axes."""
    shape = t.shape
    for d in range(t.dim()):
        if shape[d] and r.random() < 0.5:
            t = t.narrow(d, 0, 1)
    return t.expand(shape)


def overlapping(t: Tensor, r: Random) -> Tensor:
    """The same shape over a memory too small for it."""
    strides = [r.choice((0, 1, 1, 2, 3)) for _ in t.shape]
    needed = 1 + sum(max(0, n - 1) * s for n, s in zip(t.shape, strides, strict=True))
    source = t.flatten()
    if source.numel() == 0:
        return t
    return source.repeat(-(-(needed + 1) // source.numel())).as_strided(t.shape, strides, r.randint(0, 1))


def elsewhere(t: Tensor, r: Random) -> Tensor:
    """The same values with axes in another order, steps between them, and an odd storage offset."""
    order = list(range(t.dim()))
    r.shuffle(order)
    return arranged(t, order, [r.choice((1, 1, 1, 2, 3)) for _ in order], r.randint(0, 3))


def lazily_negated(t: Tensor, r: Random) -> Tensor:
    return torch._neg_view(-t) if t.dtype.is_floating_point and t.dtype.itemsize > 1 else t


def huge(t: Tensor, r: Random) -> Tensor:
    """Sizes whose products do not fit 32 or 64 bits, without memory."""
    if t.dim() == 0 or t.numel() == 0:
        return t
    shape = list(t.shape)
    for at in r.sample(range(t.dim()), r.randint(1, min(2, t.dim()))):
        t, shape[at] = t.narrow(at, 0, 1), r.choice(LARGE)
    return t.expand(shape)


def huge_and_empty(t: Tensor, r: Random) -> Tensor:
    shape = [r.choice((s, 2**31, 2**40)) for s in t.shape]
    if not shape:
        return t
    shape[r.randrange(len(shape))] = 0
    return torch.empty(0, dtype=t.dtype).as_strided(shape, [1] * len(shape))


def filled(t: Tensor, r: Random) -> Tensor:
    if t.dtype.is_floating_point or t.dtype.is_complex:
        return torch.full_like(
            t.contiguous(), r.choice((math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 6e4, -1e-40))
        )
    info = None if t.dtype == torch.bool else torch.iinfo(t.dtype)
    return torch.full_like(t.contiguous(), 1 if info is None else r.choice((info.min, info.max, 0, 3, 4)))


def one_value(t: Tensor, r: Random) -> Tensor:
    """One element out of range."""
    t = t.clone()
    if t.numel() and t.dtype != torch.bool:
        if t.dtype.is_floating_point or t.dtype.is_complex:
            value = r.choice((math.nan, math.inf, -math.inf, 6e4))
        else:
            info = torch.iinfo(t.dtype)
            value = min(max(r.choice(INTEGERS), info.min), info.max)
        t[tuple(r.randrange(n) for n in t.shape)] = value
    return t


def sparse(t: Tensor, r: Random) -> Tensor:
    return t.to_sparse()


def stranger(t: object, r: Random) -> object:
    return r.choice(STRANGERS)


def needs_gradient(t: Tensor, r: Random) -> Tensor:
    return t.detach().clone().requires_grad_() if t.dtype.is_floating_point else t


#: Those that leave the values as they are, and those that do not.
REARRANGEMENTS = (elsewhere, lazily_negated, needs_gradient)
CHANGES = (
    *(
        other_rank,
        other_size,
        other_dtype,
        meta,
        expanded,
        overlapping,
        huge,
        huge_and_empty,
        filled,
        one_value,
    ),
    *(one_value, sparse, stranger),
)


def is_huge(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() > 10**6


def spoil(value: object, r: Random, values_may_change: bool) -> object:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type == "meta" or is_huge(value):
            return value
        change = r.choice((*CHANGES, *REARRANGEMENTS) if values_may_change else REARRANGEMENTS)
        try:
            return change(value, r)
        except RuntimeError:  # torch itself makes no such tensor
            return value
    if not values_may_change:
        return value
    if isinstance(value, bool):
        return r.choice((not value, not value, *STRANGERS))
    if isinstance(value, int):
        return r.choice((*INTEGERS, value + 1, value - 1, r.choice(STRANGERS)))
    if isinstance(value, float):
        return r.choice((*NUMBERS, *INTEGERS, r.choice(STRANGERS)))
    if isinstance(value, (list, tuple)) and value and r.random() < 0.7:
        at = r.randrange(len(value))
        return type(value)(spoil(v, r, True) if i == at else v for i, v in enumerate(value))
    return r.choice(STRANGERS + INTEGERS)


def spoiled(args: tuple, r: Random) -> tuple[tuple, bool]:
    """Arguments with up to three spoiled, and whether their values are still those that were recorded."""
    args = list(args)
    keep = r.random() < 0.15
    if keep:
        args = [spoil(a, r, False) if r.random() < 0.5 else a for a in args]
    else:
        for at in r.sample(range(len(args)), min(len(args), r.choice((1, 1, 1, 2, 2, 3)))):
            value = spoil(args[at], r, True)
            # Two huge tensors whose shapes agree are no malformed call: they keep a kernel busy for hours.
            if not (is_huge(value) and any(map(is_huge, args))):
                args[at] = value
        if r.random() < 0.03:
            args = args[:-1] if r.random() < 0.5 else [*args, None]
    return tuple(args), keep


# ---- the judge ------------------------------------------------------------------------------------------


def describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:80]
    words = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.layout == torch.strided and not value.is_contiguous():
        words += f" strides {list(value.stride())} offset {value.storage_offset()}"
    if value.layout != torch.strided or value.device.type != "cpu":
        words += f" {value.layout} {value.device}"
    return words + (" grad" if value.requires_grad else "")


def tensors_of(results: object) -> list[Tensor]:
    return [r for r in contract.as_tuple(results) if isinstance(r, Tensor)]


def moderate(target: Target, args: Sequence[object]) -> bool:
    """Whether every number is of a size with which results have a few right digits in every implementation."""
    return all(
        bool((a.detach().double().abs() <= 100).all())
        for a in args
        if isinstance(a, Tensor) and a.dtype.is_floating_point and a.device.type == "cpu" and a.numel()
    ) and all(
        isinstance(a, (int, float)) and 1e-9 <= a <= 100
        for original, a in zip(target.args, args, strict=False)
        if isinstance(original, float)
    )


def with_gradients(target: Target, function: Callable, args: tuple) -> list[Tensor]:
    """Results and, where some argument wants a gradient, the gradients for some gradient of the results."""
    results = tensors_of(function(*args))
    leaves = [args[i] for i in target.gradients_of or () if i < len(args)]
    leaves = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
    outs = [r for r in results if r.requires_grad]
    if not leaves or not outs or any(o.is_meta for o in outs):
        return results
    # Not ones: a normalised map sums to 0, and of 0 only rounding is left to compare.
    grads = [torch.arange(o.numel()).cos().reshape(o.shape).to(o.dtype) for o in outs]
    found = torch.autograd.grad(outs, leaves, grads, allow_unused=True)
    return [*results, *(torch.zeros_like(a) if f is None else f for f, a in zip(found, leaves, strict=True))]


def difference(
    target: Target, got: list[Tensor], wanted: list[Tensor], args: tuple, kept: bool
) -> str | None:
    """In what `got` is wrong, or None."""
    if len(got) != len(wanted):
        return f"{len(got)} results, the reference has {len(wanted)}"
    compared = kept or not target.name.endswith("_backward")
    for i, (g, w) in enumerate(zip(got, wanted, strict=True)):
        if g.shape != w.shape or g.dtype != w.dtype or g.device != w.device:
            return f"result {i}: {describe(g)}, the reference's is {describe(w)}"
        if g.device.type == "meta" or not g.numel():
            continue
        g, w = g.detach().double(), w.detach().double()
        if target.exact:
            if not torch.equal(g.nan_to_num(nan=7e9), w.nan_to_num(nan=7e9)):
                return f"result {i}: other elements than the reference's"
        elif compared and moderate(target, args):
            # A saved mask or coefficient that no longer belongs to its inputs has no right answer: hence `compared`.
            error = (g - w).norm() / (w.norm() + 1e-2)
            if bool(w.isfinite().all()) and not error <= (0.15 if any_half(args) else 1e-3):
                return f"result {i}: relative error {error:.3g}"
    return None


def any_half(args: Sequence[object]) -> bool:
    return any(isinstance(a, Tensor) and a.dtype in contract.HALVES for a in args)


def is_sparse(value: object) -> bool:
    """Whether torch's own unfinished corners may answer."""
    return isinstance(value, Tensor) and value.layout != torch.strided


def first_line(error: BaseException) -> str:
    return re.sub(r"\d+", "#", str(error).split("\n")[0])[:90]


def as_parsed(target: Target, args: tuple) -> tuple:
    """Arguments as the dispatcher hands them on: it takes None and numbers for a bool."""
    if not isinstance(target.function, torch._ops.OpOverload):
        return args
    types = [str(a.type) for a in target.function._schema.arguments]
    return tuple(bool(a) if t == "bool" else a for a, t in zip(args, types, strict=False))


def judge(target: Target, args: tuple, kept: bool) -> tuple[str, str]:
    """("refused" | "right" | "wrong", details)."""
    if any(map(is_sparse, args)) and any(isinstance(a, Tensor) and a.numel() > 10**8 for a in args):
        return (
            "refused",
            "not called: a sparse argument sends the huge map beside it to plain PyTorch, for hours",
        )
    try:
        got = with_gradients(target, target.function, args)
    except target.refusals as error:
        if "INTERNAL ASSERT" in str(error) and not any(map(is_sparse, args)):
            return "wrong", f"an internal assertion: {first_line(error)}"
        return "refused", f"{type(error).__name__}: {first_line(error)}"
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {first_line(error)}"
    try:
        wanted = with_gradients(target, target.reference, as_parsed(target, args))
    except Exception as error:
        # Plain PyTorch gives up where the strides of an empty tensor overflow, and has not every dtype.
        unanswered = isinstance(error, NotImplementedError) or "overflow" in str(error).lower()
        if unanswered or any(g.is_meta for g in got) or not moderate(target, args):
            return "right", "no answer to compare with"
        return "wrong", f"accepted; the reference says {type(error).__name__}: {first_line(error)}"
    words = difference(target, got, wanted, args, kept)
    return ("right", "") if words is None else ("wrong", words)


# ---- child and parent -----------------------------------------------------------------------------------


def limit_memory() -> None:
    if not SANITIZED:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def child(seed: int, indices: range, log: Path) -> None:
    torch.manual_seed(seed)
    everything = targets()
    torch.set_num_threads(2)
    limit_memory()
    with log.open("w") as out:

        def write(**entry: object) -> None:
            out.write(json.dumps(entry) + "\n")
            out.flush()

        for index in indices:
            r = Random(f"{seed}/{index}")
            target = everything[index % len(everything)]
            args, kept = spoiled(target.args, r)
            write(index=index, call=f"{target.name}({', '.join(map(describe, args))})")
            signal.alarm(PATIENCE)
            verdict, details = judge(target, args, kept)
            signal.alarm(0)
            write(index=index, name=target.name, verdict=verdict, details=details)


def run(
    calls: int, seed: int, only: int | None = None, program: Sequence[str] = ("-m", "tests.fuzz_ops")
) -> tuple[Counter, list[str]]:
    """(counts of verdicts by function, complaints); `program` is what Python runs as the child."""
    counts: Counter = Counter()
    complaints = []
    start, end = (0, calls) if only is None else (only, only + 1)
    while start < end:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "calls"
            done = subprocess.run(
                [
                    *(sys.executable, "-W", "ignore", *program, "--child", str(log)),
                    *("--seed", str(seed), "--range", str(start), str(end)),
                ],
                capture_output=True,
                text=True,
                errors="replace",
            )
            entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        names = {}
        for entry in entries:
            if "call" in entry:
                names[entry["index"]] = entry["call"]
            else:
                counts[entry["name"], entry["verdict"]] += 1
                if entry["verdict"] == "wrong":
                    complaints.append(f"{entry['index']}: {names[entry['index']]}: {entry['details']}")
        if done.returncode == 0:
            break
        if not names:
            raise RuntimeError(f"the child died before its first call:\n{done.stderr[-3000:]}")
        last = max(names)
        how = "hangs" if done.returncode == -signal.SIGALRM else f"ends the process ({done.returncode})"
        report = [line for line in done.stderr.splitlines() if "failed to allocate" not in line]
        complaints.append("\n".join((f"{last}: {names[last]}: {how}", *report[:12])))
        start = last + 1
    return counts, complaints


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one call")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--range", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.seed, range(*options.range), options.child)
        return 0
    counts, complaints = run(options.calls, options.seed, options.only)
    for name in sorted({name for name, _ in counts}):
        row = {verdict: counts[name, verdict] for verdict in ("refused", "right", "wrong")}
        print(f"{name:40} {row}")
    for complaint in complaints:
        print(complaint)
    print(f"{sum(counts.values())} calls, seed {options.seed}: {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
