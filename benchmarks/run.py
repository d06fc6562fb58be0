"""Time every op: `python -m benchmarks.run [--quick] [--ops max_pool2x2,...] [--device cpu|cuda]`.

Writes benchmarks/results/<version>/ops--<machine>--<device>.json and prints a table, losses beside wins.
"""

from __future__ import annotations

import sys

from benchmarks import allocator

if __name__ == "__main__":  # before torch is loaded
    allocator.restart_with(allocator.choice_in(sys.argv), "benchmarks.run")

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common, results

_HEADINGS = (
    "case", "pass", "layout", "ours ms", "best peer ms", "best peer", "speedup", "GB/s", "copy GB/s", "share",
)  # fmt: skip


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ops", default="", help="comma-separated op folders; all when not given")
    parser.add_argument("--cases", default="", help="only cases whose name and dtype contain this text")
    parser.add_argument("--quick", action="store_true", help="one level, for a first look")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the peers")
    parser.add_argument("--batch", type=int, help="images a batch; default 4 on the CPU, 16 on a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.2, help="time for each side of a case and pass")
    parser.add_argument("--allocator", choices=allocator.CHOICES, default="tuned", help="CPU memory settings")
    parser.add_argument("--out", type=Path, help="folder for the results file")
    return parser.parse_args(argv)


def _entries(row: dict) -> tuple[str, ...]:
    peer = row["peers"].get(row["best_peer"])
    return (
        f"{row['case']} {row['dtype']}",
        row["pass"],
        row["layout"],
        f"{row['ours']['median_ms']:.3f}",
        f"{peer['median_ms']:.3f}" if peer else "none",
        row["best_peer"] or "none",
        f"{row['speedup']:.2f}" if peer else "none",
        f"{row['gigabytes_per_second']:.1f}",
        f"{max(row['copy_gigabytes_per_second'].values()):.1f}",
        f"{row['share_of_copy']:.0%}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; 0 when every case of ours matched the reference, 1 when one did not, 2 for a wrong option."""
    options = _arguments(argv)
    ops = options.ops.split(",") if options.ops else common.op_names()
    unknown = set(ops) - set(common.op_names())
    if unknown:
        return results.fail(f"--ops: expected some of {common.op_names()}, got {sorted(unknown)}")
    problem = results.option_problem(options)
    if problem:
        return results.fail(problem)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    batch = options.batch or (16 if device.type == "cuda" else 4)
    settings = common.Settings(device, options.threads, options.seconds, not options.no_compile)
    started, rows, failures = time.monotonic(), [], []
    for op in ops:
        chosen = [c for c in common.cases_of(op, batch) if options.cases in c.id]
        for case in (c for c in chosen if c.quick or not options.quick):
            print(f"{op}: {case.id}", file=sys.stderr, flush=True)
            found, failed = common.run_case(case, settings)
            rows += found
            failures += failed
    parts = {
        "ops": True,
        "eager-peers": options.no_compile,
        f"batch{batch}": options.batch is not None,
        "default-allocator": options.allocator != "tuned",
        "quick": options.quick,
    }
    suite = "-".join(name for name, given in parts.items() if given)
    report = {
        "suite": suite,
        "conditions": results.conditions(device, options.threads),
        "method": " ".join(common.METHOD.split()),
        "batch": batch,
        "only_cases": options.cases,
        "seconds_in_all": round(time.monotonic() - started),
        "failures": failures,
        "rows": rows,
    }
    path = results.write(report, suite, options.out)
    print(results.table(_HEADINGS, [_entries(r) for r in rows]))
    print("\n".join(["", *(f"no time: {f}" for f in failures), f"{len(rows)} results in {path}"]))
    return 1 if any(": ours " in f for f in failures) else 0


if __name__ == "__main__":
    sys.exit(main())
