"""Time a whole training step of both networks: `python -m benchmarks.train_step [--preset matlab64]`.

A step is forward, focal Tversky loss, backward and SGD with momentum. The sides, each NCHW and channels_last:

    fused                  the networks and the loss as they are
    fused torch.compile    the same, compiled
    reference              the same under use_backend("reference")
    eager                  the same weights with torch's own pool, unpool, gate and loss
    torch.compile          that, compiled; on a GPU also with Inductor's layout optimisation forced

No side is timed before its loss and gradients matched the eager network in float64. Writes
benchmarks/results/<version>/train_step-<preset>--<machine>--<device>.json and prints a table.
"""

from __future__ import annotations

import sys

from benchmarks import allocator

if __name__ == "__main__":  # before torch is loaded
    allocator.restart_with(allocator.choice_in(sys.argv), "benchmarks.train_step")

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import asegnet_fast as af
from asegnet_fast.models.blocks import ConvBNReLU
from asegnet_fast.ops.attention_gate import reference as gate_reference
from benchmarks import common, results, timing
from benchmarks.ops.tversky import plain_focal_tversky
from tests import tolerances

MODELS = {"segnet": af.models.SegNet, "a_segnet": af.models.ASegNet}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDES = ("fused", "fused torch.compile", "reference", "eager", "torch.compile", "torch.compile forced layout")
_PEERS = SIDES[3:]

#: Relative 2-norm beyond twice the eager network's own error: a rounding that moves a pool's maximum or a ReLU
#: moves whole gradient entries, and every side rounds in another order.
_SLACK = {"fp32": 1e-3, "bf16": 1e-2}

METHOD = """
Every side's loss and gradients are checked against the eager network in float64 before it is timed; sides take turns
in rounds of one run; median and quartiles. bf16 is torch.autocast. saved_megabytes: distinct storages kept for
backward, weights not counted (null where compiled code hides them). peak_megabytes: most memory that torch's
allocator gave out during a step beyond what was there before it (on the CPU without oneDNN's own scratch memory).
Synthetic input. On a GPU: CUDA events, no TF32.
"""


# ---- the plain twin --------------------------------------------------------------------------------------


class _PlainGate(nn.Module):
    """A gate in plain PyTorch around the weights of `af.nn.AttentionGate`: convolutions on the coarse grid."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.w_x, self.w_g, self.psi = gate.w_x, gate.w_g, gate.psi

    def forward(self, x: Tensor, g: Tensor, return_alpha: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        weights = (self.w_x.weight.flatten(1), self.w_g.weight.flatten(1), self.w_g.bias)
        out, alpha = gate_reference.attention_gate(x, g, *weights, self.psi.weight.flatten(), self.psi.bias)
        return (out, alpha) if return_alpha else out


def _plain_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    plain.load_state_dict(norm.state_dict())
    return plain.train(norm.training)


def plain_twin(net: nn.Module) -> nn.Module:
    """A copy of `net` with torch's own batch normalisation, pool and unpool (int64 indices) and plain gates."""
    twin = copy.deepcopy(net)
    for block in twin.modules():
        if isinstance(block, ConvBNReLU):
            block.bn = _plain_norm(block.bn)  # the block's own ReLU serves behind it
    twin.pool, twin.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    if hasattr(twin, "gates"):
        twin.gates = nn.ModuleList(_PlainGate(gate) for gate in twin.gates)
    return twin


# ---- a step ----------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One side's training step. error: why it has no time."""

    name: str
    layout: str
    net: nn.Module
    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    error: str | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def loss_and_gradient(self) -> tuple[Tensor, Tensor]:
        """The loss and all gradients as one vector, in float64; the weights stay."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        gradient = torch.cat([p.grad.double().flatten() for _, p in sorted(self.net.named_parameters())])
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach().double(), gradient


def make_step(
    name: str, layout: str, net: nn.Module, images: Tensor, labels: Tensor, precision: str | None
) -> Step:
    """A side on its own copy of the weights; precision None stays at the dtype of images."""
    fused = name.startswith(("fused", "reference"))
    memory_format = common.LAYOUTS[layout]
    net = (copy.deepcopy(net) if fused else plain_twin(net)).to(images.device, images.dtype)
    net = net.to(memory_format=memory_format).train()
    images = images.contiguous(memory_format=memory_format)
    criterion = af.focal_tversky_loss if fused else plain_focal_tversky
    low = precision == "bf16"

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        return criterion(net(images), labels)

    if "torch.compile" in name:
        options = {"force_layout_optimization": True} if "forced" in name else None
        loss_of = torch.compile(loss_of, dynamic=False, options=options)

    def loss() -> Tensor:
        backend = "reference" if name == "reference" else "auto"
        with af.use_backend(backend), torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            return loss_of(images, labels)

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    return Step(name, layout, net, loss, optimizer)


def saved_bytes(step: Step) -> int | None:
    """Bytes that one forward pass keeps for backward, each storage once, without weights; None if none is seen."""
    weights = {t.untyped_storage().data_ptr() for t in step.net.state_dict().values()}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = step.loss()
    del loss  # alive until here, so that no address was used twice
    return sum(seen.values()) or None


def peak_bytes(step: Step) -> int:
    """Most memory of torch's allocator that a step holds beyond what was there before it."""
    if next(step.net.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    step()  # the optimiser's buffers exist from here on
    step.optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(
        itertools.accumulate(e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())), default=0
    )


# ---- gate and results ------------------------------------------------------------------------------------


def _distance(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm().clamp_min(1e-300))


def check(
    step: Step, exact: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], precision: str
) -> str | None:
    """Where a side's loss or gradient is off; None where it matches."""
    try:
        found = step.loss_and_gradient()
    except Exception as error:
        return f"does not run: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    for what, got, e, p in zip(("loss", "gradient"), found, exact, plain, strict=True):
        off, allowed = _distance(got, e), tolerances.HALF_FACTOR * _distance(p, e) + _SLACK[precision]
        if not off <= allowed:
            return f"{what}: off by {off:.3g} in norm, allowed {allowed:.3g}"
    return None


def run(
    model: str, precision: str, names: Sequence[str], layouts: Sequence[str], options: argparse.Namespace
) -> tuple[list[dict], list[str]]:
    """(rows, failures) of one network at one precision."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    net = MODELS[model](preset=options.preset)
    shape = (options.batch, 1, options.size, options.size)
    images = torch.randn(shape, generator=common.generator(2)).to(device)
    labels = (
        (torch.rand((shape[0], *shape[2:]), generator=common.generator(3)) < 0.05).to(torch.uint8).to(device)
    )
    exact = make_step("eager", "nchw", net, images.double(), labels, None).loss_and_gradient()
    # Convolutions err differently in each layout, so each is measured against plain PyTorch's error in its own.
    plain = {
        layout: make_step("eager", layout, net, images, labels, precision).loss_and_gradient()
        for layout in layouts
    }
    torch._dynamo.reset()
    steps = [make_step(name, layout, net, images, labels, precision) for name in names for layout in layouts]
    for step in steps:
        print(f"{model} {precision}: checking {step.name} {step.layout}", file=sys.stderr, flush=True)
        step.error = check(step, exact, plain[step.layout], precision)
    right = {f"{s.name} {s.layout}": s for s in steps if s.error is None}
    failures = [f"{model} {precision}: {s.name} {s.layout}: {s.error}" for s in steps if s.error]
    if not right:
        return [], failures
    saved = {name: saved_bytes(step) for name, step in right.items()}
    times = timing.interleaved(right, device.type, options.seconds)
    peaks = {name: peak_bytes(step) for name, step in right.items()}
    rows = [
        {
            "model": model,
            "precision": precision,
            "side": step.name,
            "layout": step.layout,
            **times[name],
            "saved_megabytes": saved[name] and saved[name] / 1e6,
            "peak_megabytes": peaks[name] / 1e6,
        }
        for name, step in right.items()
    ]
    return rows, failures


def _best(rows: Sequence[dict], sides: Sequence[str]) -> dict | None:
    return min((r for r in rows if r["side"] in sides), key=lambda r: r["median_ms"], default=None)


def speedups(rows: Sequence[dict]) -> list[dict]:
    """For each network and precision: the best of ours against the best of each other kind, each in its layout."""
    found = []
    for key in dict.fromkeys((r["model"], r["precision"]) for r in rows):
        group = [r for r in rows if (r["model"], r["precision"]) == key]
        ours = _best(group, SIDES[:2])
        others = {
            "reference": ("reference",),
            "eager": ("eager",),
            "torch.compile": SIDES[4:],
            "best_peer": _PEERS,
        }
        best = {name: _best(group, sides) for name, sides in others.items()}
        if ours:
            ratios = {name: row and row["median_ms"] / ours["median_ms"] for name, row in best.items()}
            fastest = f"{ours['side']} {ours['layout']}"
            found.append({"model": key[0], "precision": key[1], "ours": fastest, **ratios})
    return found


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _print(rows: Sequence[dict], ratios: Sequence[dict]) -> None:
    headings = ("network", "side", "layout", "ms", "quartiles", "saved MB", "peak MB")
    lines = [
        (
            f"{r['model']} {r['precision']}",
            r["side"],
            r["layout"],
            f"{r['median_ms']:.1f}",
            f"{r['lower_quartile_ms']:.1f} to {r['upper_quartile_ms']:.1f}",
            _number(r["saved_megabytes"], 0),
            _number(r["peak_megabytes"], 0),
        )
        for r in rows
    ]
    print(results.table(headings, lines))
    kinds = ("reference", "eager", "torch.compile", "best_peer")
    lines = [
        (f"{r['model']} {r['precision']}", r["ours"], "", *(_number(r[k], 2) for k in kinds)) for r in ratios
    ]
    headings = ("speedup of", "by", "", *(f"over {k.replace('_', ' ')}" for k in kinds))
    print("", results.table(headings, lines), sep="\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--preset", choices=tuple(common.WIDTHS), default="matlab64")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="comma-separated")
    parser.add_argument("--layouts", default=",".join(common.LAYOUTS), help="comma-separated")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out (minutes on few cores)"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=common.SIZE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each side; at least five rounds")
    parser.add_argument("--allocator", choices=allocator.CHOICES, default="tuned", help="CPU memory settings")
    parser.add_argument("--out", type=Path, help="folder for the results file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; 0 when every side of ours matched, 1 when one did not, 2 for a wrong option."""
    options = _arguments(argv)
    lists = {"models": MODELS, "precisions": PRECISIONS, "layouts": common.LAYOUTS}
    chosen = {name: getattr(options, name).split(",") for name in lists}
    for name, known in lists.items():
        if not set(chosen[name]) <= set(known):
            return results.fail(f"--{name}: expected some of {list(known)}, got {getattr(options, name)}")
    problem = results.option_problem(options)
    if problem:
        return results.fail(problem)
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    names = [n for n in SIDES if not (options.no_compile and "torch.compile" in n)]
    names = [n for n in names if options.device == "cuda" or "forced" not in n]
    rows, failures = [], []
    for model in chosen["models"]:
        for precision in chosen["precisions"]:
            found, failed = run(model, precision, names, chosen["layouts"], options)
            rows += found
            failures += failed
    ratios = speedups(rows)
    suite = f"train_step-{options.preset}" + ("" if options.allocator == "tuned" else "-default-allocator")
    report = {
        "suite": suite,
        "conditions": results.conditions(torch.device(options.device), options.threads),
        "method": " ".join(METHOD.split()),
        "batch": options.batch,
        "size": options.size,
        "failures": failures,
        "speedups": ratios,
        "rows": rows,
    }
    path = results.write(report, suite, options.out)
    _print(rows, ratios)
    print("\n".join(["", *(f"no time: {f}" for f in failures), f"{len(rows)} results in {path}"]))
    return 1 if any(": fused" in f for f in failures) else 0


if __name__ == "__main__":
    sys.exit(main())
