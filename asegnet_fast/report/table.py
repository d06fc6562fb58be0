"""The table of a run, as the paper prints its Table 1, with the paper's numbers beside ours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asegnet_fast import paper
from asegnet_fast.files import write_csv, write_text

if TYPE_CHECKING:
    from rich.table import Table

MODEL_NAMES = {"segnet": "SegNet", "a_segnet": "A-SegNet"}
LOSS_NAMES = {
    "ce": "cross-entropy",
    "dl": "DL",
    "dl-literal": "DL (literal)",
    "gdl": "generalised DL",
    "tl": "TL",
    "ftl": "FTL",
}
MEASURES = ("dice", "sensitivity", "specificity")
AVERAGES = ("pooled", "per_image_mean", "per_fold_mean", "per_fold_sd")
HEADINGS = (
    "Model",
    "Loss",
    "Dice",
    "paper",
    "Sens.",
    "paper",
    "Spec.",
    "paper",
    "Dice/image",
    "Dice/fold",
    "Folds",
)


def loss_label(row: dict[str, Any]) -> str:
    """A loss as the table prints it, e.g. `FTL α=0.3 β=0.7 γ=4/3`."""
    parts = [LOSS_NAMES[row["loss"]]]
    for symbol, name in (("α", "alpha"), ("β", "beta"), ("γ", "gamma")):
        if row[name] is not None:
            fraction = Fraction(row[name]).limit_denominator(12)
            short = f"{row[name]:.4g}"
            if abs(float(fraction) - row[name]) < 1e-9 and len(str(fraction)) < len(short):
                short = str(fraction)
            parts.append(f"{symbol}={short}")
    return " ".join(parts)


def row_label(row: dict[str, Any]) -> str:
    """A row as the pictures name it."""
    return f"{MODEL_NAMES[row['model']]}, {loss_label(row)}"


def percent(share: float | None) -> str:
    """A share as percent with two decimals; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.2f}"


def cells(row: dict[str, Any], folds: int) -> list[str]:
    """One row of the table under `HEADINGS`."""
    printed = row["paper"] or {}
    line = [MODEL_NAMES[row["model"]], loss_label(row)]
    for name in MEASURES:
        line += [percent(row[name]["pooled"]), percent(printed.get(name))]
    spread = row["dice"]["per_fold_sd"]
    by_fold = percent(row["dice"]["per_fold_mean"]) + ("" if spread is None else f" ± {percent(spread)}")
    return [*line, percent(row["dice"]["per_image_mean"]), by_fold, f"{row['folds']} of {folds}"]


def leak_line(summary: dict[str, Any]) -> str:
    """How the slices were split, and what that leaks."""
    split = {"slice": "by slice, which is leaky", "patient": "by patient (groups stay whole)"}[
        summary["split"]
    ]
    return f"Split {split}: {summary['leak_percent']:.1f} % of the test slices have a neighbour in training."


def floor_line(summary: dict[str, Any]) -> str:
    """What predictors that look at no image reach."""
    everywhere, constant = summary["trivial"]["lesion_everywhere"], summary["trivial"]["best_constant"]
    answers = "lesion" if everywhere["label"] == 1 else f"label {everywhere['label']}"
    scores = [
        percent(p["dice"][name]) for p in (everywhere, constant) for name in ("pooled", "per_image_mean")
    ]
    return (
        f"Floor: a predictor that answers {answers} everywhere has Dice {scores[0]} pooled and {scores[1]} per image; "
        f"the best constant answer (label {constant['label']}) {scores[2]} and {scores[3]}."
    )


def standing(summary: dict[str, Any]) -> list[str]:
    """What bounds the numbers: leak, floor, and rows that are missing or not whole."""
    lines = [leak_line(summary), floor_line(summary)]
    if part := [
        f"{row['folder']} ({row['folds']})" for row in summary["rows"] if row["folds"] < summary["folds"]
    ]:
        lines.append(f"Rows with fewer than {summary['folds']} folds, over fewer slices: {', '.join(part)}.")
    if summary["missing_rows"]:
        lines.append(f"Rows without a finished fold: {', '.join(summary['missing_rows'])}.")
    return lines


def tested(summary: dict[str, Any]) -> str:
    """Of which epoch the reported numbers are, as a sentence."""
    if summary["tested_epoch"] == "best":
        return "Measured with the network that was best on each fold's inner validation."
    return f"Measured after the last of {summary['epochs']} epochs, or where a fold stopped early."


def foot(summary: dict[str, Any]) -> list[str]:
    """What a reader must know to read the numbers, one line each."""
    environment = summary["environment"]
    return [
        "All numbers are percent. Dice, Sens. and Spec. are pooled over the pixels of all test slices; Dice/image is "
        "the mean over slices; Dice/fold is mean ± standard deviation of the folds' pooled Dice. {tested(summary)}",
        *standing(summary),
        f"The paper column is Table 1 of Budak et al. 2021 ({paper.SLICES} slices, {paper.SIZE} x {paper.SIZE}, "
        f"{paper.EPOCHS} epochs); its split and averaging are not stated there, so it stands beside ours and is no "
        "target.",
        f"asegnet_fast {environment['asegnet_fast']}, torch {environment['torch']}, Python {environment['python']}, "
        f"{environment.get('gpu', environment['cpu'])}, {summary['data']['slices']} slices.",
        *(f"Note on the data: {note}" for note in summary["data"]["notes"]),
    ]


def markdown(summary: dict[str, Any]) -> str:
    """The table with its foot in Markdown."""
    lines = [list(HEADINGS), *(cells(row, summary["folds"]) for row in summary["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])
    return table + "\n\n" + "\n".join(f"- {line}" for line in foot(summary)) + "\n"


def records(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The table as one flat record for each row, numbers in percent, every average; empty where undefined."""
    flat = []
    for row in summary["rows"]:
        record = {name: row[name] for name in ("model", "loss", "alpha", "beta", "gamma", "folds")}
        for measure in MEASURES:
            for average in AVERAGES:
                value = row[measure][average]
                record[f"{measure}_{average}"] = None if value is None else round(100 * value, 4)
            value = (row["paper"] or {}).get(measure)
            record[f"{measure}_paper"] = None if value is None else round(100 * value, 4)
        record |= {
            "split": summary["split"],
            "leak_percent": summary["leak_percent"],
        }
        flat.append(record)
    return flat


def write_tables(summary: dict[str, Any], run: Path) -> None:
    """Write table1.md and table1.csv into the folder of a run.

    Args:
        summary: the content of summary.json.
        run: the folder.
    """
    write_text(Path(run) / "table1.md", markdown(summary))
    write_csv(Path(run) / "table1.csv", records(summary))


def terminal_table(summary: dict[str, Any]) -> Table:
    """The table for a terminal of 80 columns: percent, pooled, the paper's number in brackets."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(("Model", "Loss", "Dice", "Sens.", "Spec.")):
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    for row in summary["rows"]:
        line = cells(row, summary["folds"])
        pairs = [line[i] + ("" if line[i + 1] == "–" else f" ({line[i + 1]})") for i in (2, 4, 6)]
        table.add_row(line[0], line[1], *pairs)
    return table
