"""Other people's networks as they are and after `asegnet_fast.fuse`: time, and memory of a training step.

    python -m benchmarks.fuse [--device cuda] [--nets SegNet,...] [--size 256]

The networks are the re-creations of `tests/classic_nets.py`, wider, and MONAI's AttentionUnet where monai is installed.
Before anything is timed, the fused network must give the untouched one's loss and gradients, and its result in
evaluation. A training step is forward, backward and SGD; evaluation is forward without gradients.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import asegnet_fast as af
from benchmarks import common, results, timing
from benchmarks.train_step import Step, peak_bytes, saved_bytes
from tests import classic_nets

#: Relative distance in norm of loss, gradient and result: gates add in another order.
_TOLERANCE = 1e-4
SIDES = ("stock", "fused")


def _monai() -> nn.Module:
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(2, 2, 3, channels=(32, 64, 128, 256), strides=(2, 2, 2))


NETS: dict[str, Callable[[], nn.Module]] = {
    "SegNet": lambda: classic_nets.SegNet(widths=(64, 128, 256)),
    "SegNet-functions": lambda: classic_nets.FunctionalSegNet(widths=(64, 128, 256)),
    "DeconvNet": lambda: classic_nets.DeconvNet(width=64, middle=256),
    "ENet": lambda: classic_nets.ENet(width=14),
    "AttentionUNet": lambda: classic_nets.AttentionUNet(width=32),
    "AttentionUNet-grid": lambda: classic_nets.AttentionUNet(grid=True, width=32),
    "MONAI-AttentionUnet": _monai,
}


def _step(side: str, net: nn.Module, images: Tensor) -> Step:
    net = copy.deepcopy(net).to(images.device).train()
    if side == "fused":
        af.fuse(net)

    def loss() -> Tensor:
        torch.manual_seed(4)  # for dropout
        return net(images).square().mean()

    return Step(side, "nchw", net, loss, torch.optim.SGD(net.parameters(), lr=1e-6))


def _evaluate(step: Step, images: Tensor) -> Tensor:
    step.net.eval()
    with torch.no_grad():
        result = step.net(images)
    step.net.train()
    return result


def _difference(fused: Step, stock: Step, images: Tensor) -> float:
    """The largest relative distance of loss, gradient and result in evaluation."""
    pairs = [
        *zip(fused.loss_and_gradient(), stock.loss_and_gradient(), strict=True),
        (_evaluate(fused, images), _evaluate(stock, images)),
    ]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-300)) for a, b in pairs)


def run(name: str, options: argparse.Namespace) -> list[dict]:
    """Rows of one network. Raises ImportError where its package is absent, RuntimeError for other numbers."""
    torch.manual_seed(0)
    shape = (options.batch, 2, options.size, options.size)
    images = torch.randn(shape, generator=common.generator(2)).to(options.device)
    net = NETS[name]()
    steps = {side: _step(side, net, images) for side in SIDES}
    off = _difference(steps["fused"], steps["stock"], images)
    if not off <= _TOLERANCE:
        raise RuntimeError(f"{name}: fused is off by {off:.1e} in norm, allowed {_TOLERANCE:.0e}")
    saved = {side: saved_bytes(step) for side, step in steps.items()}
    train = timing.interleaved(steps, options.device, options.seconds)
    forward = {side: lambda step=step: _evaluate(step, images) for side, step in steps.items()}
    evaluation = timing.interleaved(forward, options.device, options.seconds)
    return [
        {
            "net": name,
            "side": side,
            "train": train[side],
            "evaluation": evaluation[side],
            "saved_megabytes": (saved[side] or 0) / 1e6,
            "peak_megabytes": peak_bytes(step) / 1e6,
            "difference": off,
        }
        for side, step in steps.items()
    ]


def _print(rows: Sequence[dict]) -> None:
    headings = ("network", "side", "", "train ms", "evaluation ms", "saved MB", "peak MB")
    lines = [
        (
            r["net"],
            r["side"],
            "",
            f"{r['train']['median_ms']:.1f}",
            f"{r['evaluation']['median_ms']:.1f}",
            f"{r['saved_megabytes']:.1f}",
            f"{r['peak_megabytes']:.1f}",
        )
        for r in rows
    ]
    print(results.table(headings, lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; 0 when every network gave the same numbers, 1 when one did not, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuse", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nets", default=",".join(NETS), help="comma-separated")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=common.SIZE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each side; at least five rounds")
    parser.add_argument("--out", type=Path, help="folder for the results file")
    options = parser.parse_args(argv)
    names = options.nets.split(",")
    if not set(names) <= set(NETS):
        return results.fail(f"--nets: expected some of {list(NETS)}, got {options.nets}")
    problem = results.option_problem(options)
    if problem:
        return results.fail(problem)
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows, failures, absent = [], [], []
    for name in names:
        try:
            rows += run(name, options)
        except ImportError as error:
            absent.append(f"{name}: {error}")
        except RuntimeError as error:
            failures.append(str(error))
    report = {
        "suite": "fuse",
        "conditions": results.conditions(torch.device(options.device), options.threads),
        "batch": options.batch,
        "size": options.size,
        "failures": failures,
        "absent": absent,
        "rows": rows,
    }
    path = results.write(report, "fuse", options.out)
    _print(rows)
    print(
        "\n".join(["", *(f"no time: {line}" for line in failures + absent), f"{len(rows)} results in {path}"])
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
