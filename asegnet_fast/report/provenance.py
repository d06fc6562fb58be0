"""Where the numbers of a run come from: its data, settings, machine and files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asegnet_fast.report.counts import RunCounts

#: A page lists this many patients or files.
MOST_GROUPS = 200


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; lists with commas, `none` for None."""
    return [(name, _text(value)) for name, value in values.items()]


def data_facts(summary: dict[str, Any], settings: dict[str, Any], groups: int) -> list[tuple[str, str]]:
    """What identifies the data of a run."""
    data = summary["data"]
    return facts(
        {
            "folder": settings["data"],
            "fingerprint (SHA-256 of slices, masks, names and groups)": data["fingerprint"],
            "slices": data["slices"],
            "patients or files": groups,
            "file of patients": settings.get("groups"),
            "labels in the masks": data["label_values"],
            "labels are": {"merge": "merged to one lesion class", "keep": "kept apart"}.get(
                settings.get("labels")
            ),
            "slices kept": {"lesion": "those with a label", "all": "all"}.get(settings.get("select")),
            "intensity": settings.get("intensity"),
            "side in pixels": settings["size"],
            "split": summary["split"],
            "test slices with a neighbour in training": f"{summary['leak_percent']:.1f} %",
        }
    )


def groups(counts: RunCounts) -> list[dict[str, Any]]:
    """Each patient or file: its files, slices, lesion share and the folds that test it."""
    truth = next(iter(counts.by_row.values()))
    found = []
    names = np.array(counts.groups)
    for name in sorted(set(counts.groups) - {""}):
        mine = np.flatnonzero(names == name)
        measured = truth[mine][truth[mine][:, 0, 0] >= 0]
        lesion = measured[..., 0].sum() + measured[..., 2].sum()
        pixels = measured[:, 0].sum()
        found.append(
            {
                "name": name,
                "files": ", ".join(dict.fromkeys(counts.files[i] for i in mine)),
                "slices": len(mine),
                "lesion": f"{100 * lesion / pixels:.2f}" if pixels else "–",
                "folds": ", ".join(str(fold) for fold in sorted(set(counts.folds[mine].tolist()))),
            }
        )
    return found


def checksums(run: Path, summary: dict[str, Any], more: Iterable[Path] = ()) -> list[tuple[str, str, str]]:
    """(file relative to the run, bytes, SHA-256) of what a report is made from."""
    paths = [run / name for name in ("config.json", "folds.json", "summary.json")]
    for row in summary["rows"]:
        for name in ("metrics.json", "history.csv"):
            paths += sorted((run / row["folder"]).glob(f"fold*/{name}"))
    lines = []
    for path in [*paths, *more]:
        if path.exists():
            with open(path, "rb") as stream:
                digest = hashlib.sha256()
                while block := stream.read(1 << 20):
                    digest.update(block)
            lines.append((path.relative_to(run).as_posix(), f"{path.stat().st_size:,}", digest.hexdigest()))
    return lines


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
