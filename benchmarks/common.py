"""What is timed, that it is right, and how it is compared: the runner that all op benchmarks share.

How to add an op: `benchmarks/ops/<op>.py` (the name of its folder in `asegnet_fast/ops`) holds one function,

    def cases(batch: int) -> Iterator[Case]: ...

which yields one `Case` per function, size and dtype. `levels(batch)` gives the networks' real feature maps. A case
is data; this module makes the inputs, lays them out NCHW and channels_last, checks every side against
`Case.reference` in float64 and times forward and backward of

    ours            Case.ours, through its autograd
    eager           Case.peer, plain PyTorch
    torch.compile   torch.compile(Case.peer, fullgraph=True), for cases marked `compiled` (compiling is slow)

each in both memory formats. The best peer is the fastest of the four. A side whose outputs or gradients do not
match the reference has no time; where that side is ours, the case has no result.

Forward is a training forward (inputs require gradients). Backward is torch.autograd.grad on a retained graph, with
the same gradient values for every side, dense in the side's layout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import copy_bandwidth, timing
from tests import tolerances
from tests.ops.contract import as_tuple, assert_close, to_double

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
PASSES = ("forward", "backward")
DTYPES = (torch.float32, torch.bfloat16)
#: Output channels of the encoder's five levels.
WIDTHS = {"vgg16": (64, 128, 256, 512, 512), "matlab64": (64,) * 5}
SIZE = 256
SMALL = (1, 64, 16, 16)

#: `Case.in_norm`: a value that rounds to the other side of a kink moves a whole gradient entry, in a map of 1e5
#: to 1e7 of them; errors of a formula are far larger.
_NORM_SLACK = {torch.float32: 5e-3, torch.float64: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-3}

#: How the figures were made, for the results file.
METHOD = """
Every side is checked against the reference in float64 before it is timed; sides take turns in rounds of one run;
median and quartiles. Forward is a training forward, backward is torch.autograd.grad on a retained graph (compiled
peers without donated buffers, which a retained graph rules out). best_peer is the fastest of eager and torch.compile
in NCHW and channels_last; torch.compile is a peer on the levels of vgg16 only, since compiling all of them takes far
longer than timing them. "small" is one map of 64x16x16, whatever the batch. bytes: each input read once, each output
written once. share_of_copy is against the faster of a torch copy_ and a streaming-store memcpy that move the same
number of bytes, so small sizes are held against a copy inside the cache. On a GPU: CUDA events, L2 overwritten before
each call, no TF32.
"""


# ---- what is timed ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # one is itself only: functions and shapes do not compare usefully
class Case:
    """One function at one size and dtype.

    op: folder name in asegnet_fast/ops. name: function and size, such as "pool L1 64x256x256"; unique with dtype.
    shapes: of the inputs that matter, for the record.
    inputs(device): the arguments, seeded, NCHW. Floating tensors are cast to `dtype`; 4-D tensors are laid out.
    ours, reference: take those arguments and return the same results. reference: plain PyTorch, any float dtype.
    peer: what a user would write in plain PyTorch; takes peer_args(*arguments) (int64 indices for codes, say; that
        conversion is not timed) and returns `outputs` first, in the same order.
    gradients_of: positions of the arguments that get a gradient (the same in peer_args' result).
    bytes_moved: {"forward": n, "backward": m}: each input read once and each output written once, see `nbytes`.
        Only the passes named here are timed.
    outputs: how many of the leading results are differentiable. The further ones of ours must equal the reference's.
    in_norm: compare by relative 2-norm, for functions with kinks (ReLU).
    compiled: whether torch.compile is a peer here. quick: whether `--quick` runs it.
    """

    op: str
    name: str
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Callable[[torch.device], tuple]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    peer: Callable[..., Any]
    gradients_of: Sequence[int]
    bytes_moved: Mapping[str, int]
    peer_args: Callable[..., tuple] = lambda *args: args
    outputs: int = 1
    in_norm: bool = False
    compiled: bool = False
    quick: bool = False

    @property
    def id(self) -> str:
        return f"{self.name} {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Level:
    """A feature map [N, C, H, W] of the networks, before that level's pooling. index: 1 (finest) to 5.

    0 is a single small map, where the time of a call is mostly what it costs to reach the kernel.
    """

    index: int
    shape: tuple[int, int, int, int]
    networks: tuple[str, ...]

    @property
    def name(self) -> str:
        return (f"L{self.index} " if self.index else "small ") + "x".join(map(str, self.shape[1:]))

    @property
    def compiled(self) -> bool:
        """Levels that torch.compile is timed on: compiling all of them takes far longer than timing them."""
        return "vgg16" in self.networks

    @property
    def quick(self) -> bool:
        return self.index == 4 and "matlab64" in self.networks


def levels(batch: int) -> list[Level]:
    """The five levels of both networks at 256 x 256, each shape once, and the small map."""
    networks: dict[tuple[int, tuple], list[str]] = {(0, SMALL): []}
    for network, widths in WIDTHS.items():
        for k, channels in enumerate(widths):
            shape = (batch, channels, SIZE >> k, SIZE >> k)
            networks.setdefault((k + 1, shape), []).append(network)
    return [Level(index, shape, tuple(names)) for (index, shape), names in sorted(networks.items())]


def generator(seed: int) -> torch.Generator:
    """A seeded generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(seed)


def nbytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def op_names() -> list[str]:
    """Ops that have a benchmark."""
    return sorted(p.stem for p in (Path(__file__).parent / "ops").glob("*.py") if p.stem != "__init__")


def cases_of(op: str, batch: int) -> list[Case]:
    return list(importlib.import_module(f"benchmarks.ops.{op}").cases(batch))


# ---- the sides -------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One implementation in one layout, with a result and a gradient to check. error: why it has no time."""

    who: str
    layout: str
    forward: Callable[[], tuple] | None = None
    backward: Callable[[], tuple] | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.who} {self.layout}"


def _lay_out(value: Any, layout: str) -> Any:
    if not isinstance(value, Tensor) or value.dim() not in (4, 5):
        return value
    volume = value.dim() == 5 and layout == "channels_last"
    return value.contiguous(memory_format=torch.channels_last_3d if volume else LAYOUTS[layout])


def arguments(case: Case, device: torch.device) -> tuple:
    """The case's inputs in its dtype."""
    return tuple(
        a.to(case.dtype) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in case.inputs(device)
    )


def output_gradients(results: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients for the outputs; 1 for a scalar, which is a loss."""
    g = generator(1)
    return [
        torch.ones_like(r) if r.dim() == 0 else torch.randn(r.shape, generator=g).to(r.device, r.dtype)
        for r in results
    ]


def build(
    case: Case,
    who: str,
    call: Callable,
    args: tuple,
    layout: str,
    output_grads: Sequence[Tensor] | None = None,
) -> Side:
    """Lay out the arguments, run `call` once, and keep its graph for backward."""
    args = [_lay_out(a, layout) for a in args]
    wanted = [args[i].detach().requires_grad_() for i in case.gradients_of]
    for i, leaf in zip(case.gradients_of, wanted, strict=True):
        args[i] = leaf

    def forward() -> tuple:
        return as_tuple(call(*args))

    results = forward()[: case.outputs]
    grads = [_lay_out(g, layout) for g in output_grads or output_gradients(results)]

    def backward() -> tuple:
        return torch.autograd.grad(results, wanted, grads, retain_graph=True)

    return Side(who, layout, forward, backward)


def sides(case: Case, args: tuple, layouts: Sequence[str], with_compile: bool) -> list[Side]:
    """Ours and every peer; a peer that does not run is kept with its error."""
    calls = {"ours": case.ours, "eager": case.peer}
    if with_compile and case.compiled:
        # A function compiled for many sizes would reach the recompilation limit.
        torch._dynamo.reset()
        torch._functorch.config.donated_buffer = False  # the timed graph is retained
        calls["torch.compile"] = torch.compile(case.peer, fullgraph=True, dynamic=False)
    found = []
    for who, call in calls.items():
        own_args = args if who == "ours" else case.peer_args(*args)
        for layout in layouts:
            try:
                found.append(build(case, who, call, own_args, layout))
            except Exception as error:
                if who == "ours":
                    raise
                found.append(Side(who, layout, error=f"does not run: {_first_line(error)}"))
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# ---- the gate --------------------------------------------------------------------------------------------


def _assert_close_in_norm(got: Tensor, exact: Tensor, plain: Tensor, dtype: torch.dtype, what: str) -> None:
    scale = exact.double().norm().clamp_min(1e-300)
    error, own = ((t.double() - exact).norm() / scale for t in (got, plain))
    allowed = tolerances.HALF_FACTOR * own + _NORM_SLACK[dtype]
    if not error <= allowed:
        raise AssertionError(f"{what}: off by {error:.3g} in norm, allowed {allowed:.3g}")


@dataclass(frozen=True)
class Expected:
    """The reference's results and gradients: exact in float64, plain at the case's own dtype."""

    exact: tuple
    plain: tuple
    exact_gradients: tuple
    plain_gradients: tuple


def expected(case: Case, args: tuple) -> Expected:
    """What every side must give."""
    plain = build(case, "reference", case.reference, args, "nchw")
    results, gradients = plain.forward(), plain.backward()
    # Gradients of the outputs as the sides get them, rounded to their dtype, and not drawn anew in float64.
    grads = [g.double() for g in output_gradients(results[: case.outputs])]
    exact = build(case, "reference", case.reference, to_double(args), "nchw", grads)
    return Expected(
        tuple(r.detach() for r in exact.forward()),
        tuple(r.detach() for r in results),
        exact.backward(),
        gradients,
    )


def mismatch(case: Case, side: Side, truth: Expected) -> str | None:
    """Where a side's results or gradients differ from the reference's; None where they match."""
    close = _assert_close_in_norm if case.in_norm else assert_close
    try:
        results = side.forward()
        for i in range(case.outputs):
            close(results[i].detach(), truth.exact[i], truth.plain[i], case.dtype, f"result {i}")
        if side.who == "ours":
            for i in range(case.outputs, len(results)):
                if not torch.equal(results[i], truth.plain[i]):
                    return f"result {i}: not equal to the reference's"
        gradients = zip(side.backward(), truth.exact_gradients, truth.plain_gradients, strict=True)
        for i, (got, exact, plain) in zip(case.gradients_of, gradients, strict=True):
            close(got, exact, plain, case.dtype, f"gradient of argument {i}")
    except AssertionError as error:
        return str(error)
    return None


# ---- results ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How to run. seconds: about how long each side of a pass is timed."""

    device: torch.device
    threads: int
    seconds: float = 0.2
    with_compile: bool = True
    layouts: Sequence[str] = tuple(LAYOUTS)


def checked_sides(case: Case, settings: Settings) -> list[Side]:
    """Every side of a case, those that do not match the reference with their error."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    args = arguments(case, settings.device)
    every = sides(case, args, settings.layouts, settings.with_compile)
    truth = expected(case, args)
    for side in every:
        side.error = side.error or mismatch(case, side, truth)
    return every


def run_case(case: Case, settings: Settings) -> tuple[list[dict], list[str]]:
    """Check, then time one case.

    Returns:
        (rows, failures): one row per pass and layout of ours; and one line for every side that has no time. A
        failed check of ours leaves no row.
    """
    every = checked_sides(case, settings)
    failures = [f"{case.id}: {s.name}: {s.error}" for s in every if s.error]
    right = [s for s in every if s.error is None]
    if sum(s.who == "ours" for s in right) < len(settings.layouts):
        return [], failures
    rows = []
    for which in PASSES:
        if which in case.bytes_moved:
            rows += _rows(case, which, right, settings)
    return rows, failures


def _rows(case: Case, which: str, right: Sequence[Side], settings: Settings) -> list[dict]:
    device_type, moved = settings.device.type, case.bytes_moved[which]
    copies = copy_bandwidth.measure(moved, device_type, settings.threads)
    times = timing.interleaved({s.name: getattr(s, which) for s in right}, device_type, settings.seconds)
    peers = {s.name: times[s.name] for s in right if s.who != "ours"}
    best = min(peers, key=lambda name: peers[name]["median_ms"], default=None)
    rows = []
    for side in right:
        if side.who != "ours":
            continue
        own = times[side.name]
        rate = moved / own["median_ms"] / 1e6
        rows.append(
            {
                "op": case.op,
                "case": case.name,
                "shapes": {name: list(shape) for name, shape in case.shapes.items()},
                "dtype": dtype_name(case.dtype),
                "pass": which,
                "layout": side.layout,
                "ours": own,
                "peers": peers,
                "best_peer": best,
                "speedup": peers[best]["median_ms"] / own["median_ms"] if best else None,
                "bytes": moved,
                "gigabytes_per_second": rate,
                "copy_gigabytes_per_second": copies,
                "share_of_copy": rate / max(copies.values()),
            }
        )
    return rows
