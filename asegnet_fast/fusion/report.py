"""What `fuse` did to a model, and what it left and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Entry:
    """One place of a model.

    path: the module's name in the model, "" for the model itself. what: kind of thing, such as "MaxPool2d".
    detail: what stands there now, or why it was left.
    """

    path: str
    what: str
    detail: str


@dataclass(frozen=True)
class Saved:
    """Bytes that one forward pass with the example inputs keeps for backward, weights not counted."""

    before: int
    after: int


@dataclass
class Report:
    """What was replaced, what was left and why, and what the example inputs showed.

    replaced, left: in the model's order. saved: None without example inputs, or where they could not be run.
    largest_difference: of any output between the fused and the untouched model, relative to the largest magnitude of
    that output; None where `saved` is. note: why there are no such figures.

    `print(report)` shows a table, `to_dict()` has nothing but what JSON knows.
    """

    replaced: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    saved: Saved | None = None
    largest_difference: float | None = None
    note: str | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            *_table(("replaced", "what", "by"), self.replaced),
            *_table(("left to torch", "what", "because"), self.left),
        ]
        if self.saved is not None:
            before, after = (b / 2**20 for b in (self.saved.before, self.saved.after))
            share = f", {100 * (1 - after / before):.0f} % less" if before else ""
            lines.append(f"kept for backward: {before:.1f} MiB before, {after:.1f} MiB now{share}")
            lines.append(
                f"largest difference of an output: {self.largest_difference:.1e} of its largest magnitude"
            )
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


def _table(headings: tuple[str, str, str], entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return [f"{headings[0]}: nothing", ""]
    rows = [headings, *((e.path or "(the model)", e.what, e.detail) for e in entries)]
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return [f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows] + [""]
