"""One HTML page with everything a run has to show; it needs nothing besides itself."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from asegnet_fast import paper
from asegnet_fast.evaluation.statistics import Interval
from asegnet_fast.files import write_text
from asegnet_fast.report import conclusions as drawn
from asegnet_fast.report import provenance
from asegnet_fast.report.charts import MEASURE_NAMES
from asegnet_fast.report.conclusions import FEWEST_UNITS, OPTIONS, Conclusion
from asegnet_fast.report.counts import RunCounts, fold_dice
from asegnet_fast.report.figures import Figures
from asegnet_fast.report.pictures import colour_map, png
from asegnet_fast.report.strips import Strips
from asegnet_fast.report.table import (
    MODEL_NAMES,
    floor_line,
    leak_line,
    loss_label,
    percent,
    row_label,
    tested,
)

TEMPLATES = Path(__file__).parent / "templates"
DASH = "–"
SIGNS = {drawn.SUPPORTED: "✓", drawn.NOT_SUPPORTED: "✗", drawn.UNDECIDED: "≈", drawn.NOT_ANSWERABLE: "○"}
SECTIONS = (
    ("limits", "How far it goes"),
    ("results", "Results"),
    ("comparison", "Beside the published numbers"),
    ("conclusions", "Conclusions"),
    ("pictures", "Pictures"),
    ("curves", "Learning curves"),
    ("folds", "Folds and floor"),
    ("definitions", "Definitions"),
    ("provenance", "Data, settings, environment"),
)


def write_page(
    path: Path,
    run: Path,
    summary: dict[str, Any],
    settings: dict[str, Any],
    counts: RunCounts,
    intervals: dict[str, dict[str, Interval]],
    answers: Sequence[Conclusion],
    limits: Sequence[str],
    figures: Figures,
) -> None:
    """Write the page of a run.

    Args:
        path: the HTML file to write.
        run: the folder of the run.
        summary: the content of its summary.json.
        settings: the settings in its config.json.
        counts, intervals, answers, limits, figures: what the other modules made of it.
    """
    rows = summary["rows"]
    groups = provenance.groups(counts)
    context = {
        "title": "/".join(run.absolute().parts[-2:]),
        "sections": SECTIONS,
        "lead": _lead(summary, len(groups)),
        "limits": limits,
        "problems": figures.problems,
        "level": f"{100 * OPTIONS.level:g}",
        "resamples": OPTIONS.resamples,
        "fewest": FEWEST_UNITS,
        "measures": list(MEASURE_NAMES.values()),
        "results": [_result(row, summary["folds"], intervals[row["folder"]]) for row in rows],
        "floor": floor_line(summary),
        "remarks": _remarks(rows),
        "leak": leak_line(summary),
        "downloads": [
            (name, _uri(run / name))
            for name in ("table1.csv", "table1.md", "conclusions.csv", "summary.json")
            if (run / name).exists()
        ],
        "comparison": [
            {
                "name": name,
                "uri": _uri(figures.charts[f"comparison-{measure}"]),
                "alt": _bars_in_words(rows, measure, name),
            }
            for measure, name in MEASURE_NAMES.items()
            if f"comparison-{measure}" in figures.charts
        ],
        "conclusions": [_answer(answer) for answer in answers],
        "strips": {name: _strips(strips) for name, strips in figures.strips.items()},
        "training": _training(rows, figures),
        "curves": [
            {
                "name": row_label(row),
                "uri": _uri(figures.charts[f"folds--{row['folder']}"]),
                "alt": _curves_in_words(row, summary, fold_dice(counts, row["folder"])),
            }
            for row in rows
            if f"folds--{row['folder']}" in figures.charts
        ],
        "fold_heads": [f"fold {fold}" for fold in range(summary["folds"])] + ["pooled"],
        "fold_rows": _fold_rows(summary, counts),
        "tested": tested(summary),
        "size": settings["size"],
        "data": provenance.data_facts(summary, settings, len(groups)),
        "notes": summary["data"]["notes"],
        "groups": groups[: provenance.MOST_GROUPS],
        "groups_left_out": max(0, len(groups) - provenance.MOST_GROUPS),
        "settings": provenance.facts(settings),
        "environment": provenance.facts(summary["environment"]),
        "checksums": provenance.checksums(run, summary, figures.checkpoints),
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    write_text(path, environment.get_template("page.html").render(context))


def _lead(summary: dict[str, Any], units: int) -> str:
    rows = len(summary["rows"])
    return (
        f"{rows} row{'' if rows == 1 else 's'} (model and loss), {summary['folds']} folds, "
        f"{summary['data']['slices']} slices of {units} patients or files, split by {summary['split']}, "
        f"{summary['epochs']} epoch{'' if summary['epochs'] == 1 else 's'}. "
        f"asegnet_fast {summary['environment']['asegnet_fast']}."
    )


def _result(row: dict[str, Any], folds: int, intervals: dict[str, Interval]) -> dict[str, Any]:
    spread = row["dice"]["per_fold_sd"]
    return {
        "model": MODEL_NAMES[row["model"]],
        "loss": loss_label(row),
        "cells": [
            {
                "value": percent(row[measure]["pooled"]),
                "range": _range(100 * intervals[measure].low, 100 * intervals[measure].high),
                "paper": percent((row["paper"] or {}).get(measure)),
            }
            for measure in MEASURE_NAMES
        ],
        "per_image": percent(row["dice"]["per_image_mean"]),
        "per_fold": percent(row["dice"]["per_fold_mean"])
        + ("" if spread is None else f" ± {percent(spread)}"),
        "folds": f"{row['folds']} of {folds}",
    }


def _remarks(rows: list[dict[str, Any]]) -> list[str]:
    """What a reader of the table could stumble over."""
    losses = {(row["loss"], row["alpha"], row["beta"]) for row in rows}
    if {("dl", None, None), ("tl", 0.5, 0.5)} <= losses:
        dl, tl = (paper.TABLE1[loss]["segnet"][0] for loss in ("dl", "tl:0.5:0.5"))
        return [
            "DL and TL α=0.5 β=0.5 are one formula, and these rows differ by nothing but rounding. The paper prints "
            f"{dl} and {tl} for SegNet: so far do its own rows scatter, or its DL is another one."
        ]
    return []


def _answer(answer: Conclusion) -> dict[str, Any]:
    lines = []
    for comparison in answer.comparisons:
        effect, test, folds = comparison.effect, comparison.test, comparison.folds_in_favour
        lines.append(
            {
                "name": comparison.name,
                "pairs": len(comparison.pairs),
                "difference": _signed(effect and 100 * effect.value),
                "range": _range(100 * effect.low, 100 * effect.high, signed=True) if effect else "",
                "dz": _signed(test and test.cohen_dz),
                "p": DASH if test is None or math.isnan(test.p_value) else _p_value(test.p_value),
                "units": f"{test.wins} of {test.pairs}" if test else DASH,
                "folds": f"{folds[0]} of {folds[1]} folds" if folds else "",
                "paper": _signed(None if comparison.paper is None else 100 * comparison.paper),
            }
        )
    return {
        "number": answer.number,
        "claim": answer.claim,
        "verdict": answer.verdict,
        "sign": SIGNS[answer.verdict],
        "reason": answer.reason,
        "comparisons": lines,
    }


def _strips(strips: Strips) -> dict[str, Any]:
    scale = ""
    if strips.scale:
        stops = (255 * colour_map([i / 8 for i in range(9)])).round().astype(int).tolist()
        scale = ",".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    return {
        "strips": [
            {
                "title": strip.title,
                "panels": [
                    {
                        "uri": _data_uri("image/png", png(panel.picture)),
                        "width": panel.picture.shape[1],
                        "height": panel.picture.shape[0],
                        "caption": panel.caption,
                        "alt": panel.alt,
                    }
                    for panel in strip.panels
                ],
            }
            for strip in strips.strips
        ],
        "narrow": all(len(strip.panels) <= 4 for strip in strips.strips),
        "legend": strips.legend,
        "scale": scale,
        "left_out": strips.left_out,
    }


def _training(rows: list[dict[str, Any]], figures: Figures) -> dict[str, str] | None:
    if "training_curves" not in figures.charts:
        return None
    alt = f"Line charts of training loss and Dice on the test slices by epoch for {', '.join(map(row_label, rows))}"
    return {"uri": _uri(figures.charts["training_curves"]), "alt": alt}


def _fold_rows(summary: dict[str, Any], counts: RunCounts) -> list[tuple[str, list[str]]]:
    lines = []
    for row in summary["rows"]:
        by_fold = fold_dice(counts, row["folder"])
        values = [percent(by_fold.get(fold)) for fold in range(summary["folds"])]
        lines.append((row_label(row), [*values, percent(row["dice"]["pooled"])]))
    for name, key in (("Lesion everywhere", "lesion_everywhere"), ("Best constant answer", "best_constant")):
        pooled = percent(summary["trivial"][key]["dice"]["pooled"])
        lines.append((name, [DASH] * summary["folds"] + [pooled]))
    return lines


def _bars_in_words(rows: list[dict[str, Any]], measure: str, name: str) -> str:
    told = [f"{row_label(row)} {percent(row[measure]['pooled'])}" for row in rows]
    return f"Bar chart of {name.lower()} in percent: {'; '.join(told)}"


def _curves_in_words(row: dict[str, Any], summary: dict[str, Any], by_fold: dict[int, float]) -> str:
    last = ", ".join(f"{percent(value)} in fold {fold}" for fold, value in by_fold.items())
    epochs = f"{row_label(row)} over {summary['epochs']} epochs or fewer"
    return f"Line charts of {epochs}; Dice on the test slices: {last}"


def _signed(value: float | None) -> str:
    if value is None or math.isnan(value):
        return DASH
    return f"{value:+.2f}".replace("-", "−")


def _range(low: float, high: float, signed: bool = False) -> str:
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{_signed(low)} to {_signed(high)}" if signed else f"{low:.2f} to {high:.2f}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _uri(path: Path) -> str:
    kinds = {".svg": "image/svg+xml", ".csv": "text/csv", ".md": "text/markdown", ".json": "application/json"}
    return _data_uri(kinds[path.suffix], path.read_bytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
