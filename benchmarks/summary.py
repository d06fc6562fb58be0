"""Tables from the results files: `python -m benchmarks.summary` writes summary.md beside them.

The figures of README come from there. A ratio is the best peer's time over ours in the same run, above 1 where ours
is faster; every row is listed, losses beside wins, with the goal it was held against.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import results

#: (forward, backward) against the best peer on two CPU threads, by the function of a case.
GOALS = {
    "pool": (2.4, 3.5),
    "unpool": (5.0, 2.6),
    "gate": (2.7, 3.5),
    "focal_tversky": (30.0, 12.0),
}
_PASSES = ("forward", "backward")


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    ruler = ["---"] * text_columns + ["---:"] * (len(headings) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, ruler, *rows))


def _conditions(report: dict) -> str:
    c = report["conditions"]
    return (
        f"{c['machine']}, {c['threads']} threads, torch {c['torch']}, instruction set {c['isa']}, "
        f"allocator {'tuned' if c['allocator'] != 'default' else 'default'}, batch {report['batch']}, "
        f"load average {c['load_average']:.1f} at the end"
    )


def _kind(row: dict) -> str:
    """The function of a case: its name up to the size."""
    return re.match(r"(.+?) (?:L\d|small|\d)", row["case"]).group(1)


def _ratio(row: dict | None) -> str:
    if row is None:
        return ""
    return "no peer" if row["speedup"] is None else f"{row['speedup']:.2f}"


def _range(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def short_table(rows: Sequence[dict]) -> str:
    """One line for each op and dtype: median ratio over the cases, smallest and largest, of ours in each layout."""
    lines = []
    for kind in dict.fromkeys(map(_kind, rows)):
        for dtype in dict.fromkeys(r["dtype"] for r in rows):
            cells = []
            for layout in ("channels_last", "nchw"):
                for which in _PASSES:
                    wanted = (kind, dtype, layout, which)
                    cells.append(
                        _range(
                            [
                                r["speedup"]
                                for r in rows
                                if (_kind(r), r["dtype"], r["layout"], r["pass"]) == wanted and r["speedup"]
                            ]
                        )
                    )
            goal = " / ".join(f"{g:g}" for g in GOALS[kind]) if kind in GOALS else ""
            lines.append((f"`{kind}`", dtype, *cells, goal))
    headings = (
        "op", "dtype", "channels_last forward", "backward", "NCHW forward", "backward", "goal",
    )  # fmt: skip
    return _markdown(headings, lines, 2)


def full_table(rows: Sequence[dict]) -> str:
    """Every case: ratio and share of copy bandwidth, forward and backward, in each layout."""
    found = {(r["case"], r["dtype"], r["layout"], r["pass"]): r for r in rows}
    lines = []
    for case, dtype, layout in dict.fromkeys((r["case"], r["dtype"], r["layout"]) for r in rows):
        forward, backward = (found.get((case, dtype, layout, which)) for which in _PASSES)
        shares = [f"{r['share_of_copy']:.0%}" if r else "" for r in (forward, backward)]
        peers = [(r["best_peer"] or "none") if r else "" for r in (forward, backward)]
        lines.append(
            (case, dtype, layout, _ratio(forward), shares[0], peers[0], _ratio(backward), shares[1], peers[1])
        )
    headings = (
        "case", "dtype", "ours in", "forward", "of copy", "against", "backward", "of copy", "against",
    )  # fmt: skip
    return _markdown(headings, lines, 3)


def step_table(report: dict) -> str:
    """Every side of the training steps."""
    lines = [
        (
            r["model"],
            r["precision"],
            r["side"],
            r["layout"],
            f"{r['median_ms']:.0f}",
            *(f"{r[k]:.0f}" if r[k] else "" for k in ("saved_megabytes", "peak_megabytes")),
        )
        for r in report["rows"]
    ]
    headings = ("network", "precision", "side", "layout", "ms", "saved MB", "peak MB")
    return _markdown(headings, lines, 4)


def step_ratios(report: dict) -> str:
    """The best of ours over the best of each other kind."""
    kinds = ("reference", "eager", "torch.compile")
    lines = [
        (r["model"], r["precision"], *(f"{r[k]:.2f}" if r[k] else "not timed" for k in kinds))
        for r in report["speedups"]
    ]
    return _markdown(("network", "precision", *(f"over {k}" for k in kinds)), lines, 2)


def sections(folder: Path) -> Iterator[str]:
    """The text for every results file in a folder."""
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        yield f"## {report['suite']}, {report['conditions']['machine']}\n\n{_conditions(report)}."
        if report["suite"].startswith("train_step"):
            yield step_ratios(report)
            yield step_table(report)
        else:
            large = [r for r in report["rows"] if " small " not in r["case"]]
            yield "Median over the cases (smallest to largest ratio), small maps not counted:"
            yield short_table(large)
            yield full_table(report["rows"])
        if report["failures"]:
            yield "Without a time:\n\n" + "\n".join(f"- {f}" for f in report["failures"])


def main(argv: Sequence[str] | None = None) -> int:
    """Write summary.md; 2 for a folder without results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results files")
    folder = parser.parse_args(argv).out or results.folder(None)
    found = list(sections(folder))
    if not found:
        return results.fail(f"--out: expected a folder with results files, got {folder}")
    head = f"# Results\n\nMade by `python -m benchmarks.summary`. {' '.join(__doc__.split(chr(10) * 2)[1].split())}"
    results.write_text(folder / "summary.md", "\n\n".join([head, *found]) + "\n")
    print(folder / "summary.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
