"""An evaluation as people read it: Markdown, and tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from asegnet_fast.evaluation.summary import AVERAGES

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "iou": "IoU",
    "hd95": "HD95",
    "assd": "ASSD",
    "surface_dice": "Surface Dice",
    "truth_volume": "True volume",
    "predicted_volume": "Volume",
    "volume_error": "Volume error",
    "absolute_volume_error": "|Volume error|",
    "volume_error_percent": "Volume error",
    "absolute_volume_error_percent": "|Volume error|",
}
HEADINGS = dict(zip(AVERAGES, ("Pooled", "Per image", "Per volume", "Per fold"), strict=True))
_DASH = "–"


def markdown(evaluation: dict[str, Any]) -> str:
    """The whole evaluation in Markdown.

    Args:
        evaluation: the content of evaluation.json.
    """
    parts = ["# Evaluation\n"]
    for record in evaluation["records"]:
        parts.append(f"## {record['name']}\n")
        summary = record["summary"]
        if "classes" in summary:
            parts.append("Mean over the labels:\n")
        parts.append(_lines(_measure_rows(summary["measures"])))
        for entry in summary.get("classes", ()):
            parts.append(f"Label {entry['label']}:\n")
            parts.append(_lines(_measure_rows(entry["measures"])))
    for comparison in evaluation["comparisons"]:
        parts.append(f"## {comparison['first']} less {comparison['second']}\n")
        parts.append(_lines(_comparison_rows(comparison)))
    parts.append("\n".join(f"- {line}" for line in foot(evaluation)) + "\n")
    return "\n".join(parts)


def short_foot(evaluation: dict[str, Any]) -> list[str]:
    """What a terminal says below the tables: how much was measured, how, and what is doubtful."""
    options, record = evaluation["bootstrap"], evaluation["records"][0]
    words = " ".join(f"{name}={word}" for name, word in evaluation["empty"].items())
    undefined = _undefined(record["summary"]["measures"])
    return [
        f"{_extent(record)}. {evaluation['measured']}",
        f"In brackets the {100 * options['level']:g} % interval over units. Empty masks (both/one): {words}.",
        *([undefined] if undefined else []),
        *(f"Note: {note}" for note in evaluation["notes"]),
    ]


def foot(evaluation: dict[str, Any]) -> list[str]:
    """What a reader must know to read the numbers, one line each."""
    options, record = evaluation["bootstrap"], evaluation["records"][0]
    level = f"{100 * options['level']:g} %"
    lines = [
        f"{_extent(record)}; a unit is a patient, or a file where none is known. {evaluation['measured']}",
        "Shares are in percent. Pooled: all pixels added up, so that large and finely sampled cases weigh more; per "
        "image and per volume: means over slices and cases; "
        "per fold: mean ± standard deviation of the folds' pooled values.",
        f"In brackets the {level} bootstrap interval ({options['method']}, {options['resamples']} resamples of "
        f"whole units, seed {options['seed']}).",
        f"Empty masks: {'; '.join(evaluation['empty_sentences'])}.",
    ]
    if any(case["space"] for case in record["cases"]):
        lines.append(
            "Distances between surface voxels by the affine, in mm (per image inside the slice's plane); HD95 is the "
            "larger of the two directed 95th percentiles, ASSD the mean over both surfaces, Surface Dice the share "
            f"within {evaluation['tolerance_mm']:g} mm. Volume errors are prediction less truth."
        )
    if evaluation["comparisons"]:
        lines.append(
            "Differences are first less second. p: Wilcoxon signed-rank test over units or folds, two-sided; r: "
            "matched-pairs rank-biserial correlation. With n pairs no p can be below 2^(1-n)."
        )
        if len(evaluation["comparisons"]) > 1:
            lines.append("p (Holm) is adjusted for the number of comparisons.")
    undefined = _undefined(record["summary"]["measures"])
    return lines + ([undefined] if undefined else []) + [f"Note: {note}" for note in evaluation["notes"]]


def terminal_tables(evaluation: dict[str, Any]) -> Iterable[Table]:
    """The tables for a terminal: measures of one model, or the models below each other; then the comparisons."""
    records = evaluation["records"]
    if len(records) == 1:
        yield _table(_measure_rows(records[0]["summary"]["measures"], between="\n"))
        classes = records[0]["summary"].get("classes")
        if classes:
            yield _table(_class_rows(classes))
    else:
        yield _table(_model_rows(records))
    if evaluation["comparisons"]:
        yield _table(_difference_rows(evaluation["comparisons"]))


def _extent(record: dict[str, Any]) -> str:
    cases = record["cases"]
    numbers = len({case["unit"] for case in cases}), sum(len(case["indices"]) for case in cases)
    return f"Cases: {len(cases)}, independent units: {numbers[0]}, slices: {numbers[1]}"


def _measure_rows(measures: dict[str, Any], between: str = " ") -> list[list[str]]:
    averages = [average for average in AVERAGES if any(average in entry for entry in measures.values())]
    rows = [["Measure", *(HEADINGS[average] for average in averages)]]
    for name, entry in measures.items():
        cells = [_cell(entry.get(average), entry["unit"], between) for average in averages]
        rows.append([_named(name, entry["unit"]), *cells])
    return rows


def _class_rows(classes: list[dict[str, Any]]) -> list[list[str]]:
    shown = [name for name in ("dice", "hd95", "volume_error") if name in classes[0]["measures"]]
    rows = [
        ["Label", "Dice, pooled", *(_named(name, classes[0]["measures"][name]["unit"]) for name in shown)]
    ]
    for entry in classes:
        measures = entry["measures"]
        cells = [_cell(measures[name]["per_volume_mean"], measures[name]["unit"], "\n") for name in shown]
        rows.append([str(entry["label"]), _cell(measures["dice"]["pooled"], "1", "\n"), *cells])
    return rows


def _model_rows(records: list[dict[str, Any]]) -> list[list[str]]:
    columns = [
        ("dice", "pooled"),
        ("dice", "per_volume_mean"),
        ("sensitivity", "pooled"),
        ("specificity", "pooled"),
    ]
    if all("hd95" in record["summary"]["measures"] for record in records):
        columns[3] = ("hd95", "per_volume_mean")
    measures = records[0]["summary"]["measures"]
    head = [
        f"{_named(name, measures[name]['unit'])}\n{HEADINGS[average].lower()}" for name, average in columns
    ]
    rows = [["Model", *head]]
    for record in records:
        measures = record["summary"]["measures"]
        cells = [_cell(measures[name][average], measures[name]["unit"], "\n") for name, average in columns]
        rows.append([record["name"], *cells])
    return rows


def _comparison_rows(comparison: dict[str, Any]) -> list[list[str]]:
    measures = comparison["measures"]
    folds = any("per_fold" in entry for entry in measures.values())
    holm = any("p_holm" in entry["per_unit"] for entry in measures.values())
    test = ["p", *["p (Holm)"] * holm, "r", "Higher/equal/lower"]
    rows = [["Measure", "Pooled", "Per unit", *test, *["Per fold", *test] * folds]]
    for name, entry in measures.items():
        row = [_named(name, entry["unit"]), _cell(entry.get("pooled_difference"), entry["unit"], " ")]
        for key in ("per_unit", "per_fold") if folds else ("per_unit",):
            row += _test_cells(entry.get(key), entry["unit"], holm)
        rows.append(row)
    return rows


def _test_cells(test: dict[str, Any] | None, unit: str, holm: bool) -> list[str]:
    if test is None:
        return [_DASH] * (4 + holm)
    counts = "/".join(str(test[key]) for key in ("wins", "ties", "losses"))
    adjusted = [_p(test["p_holm"])] if holm else []
    return [
        _cell(test["difference"], unit, " "),
        _p(test["p_value"]),
        *adjusted,
        _number(test["rank_biserial"], 2),
        counts,
    ]


def _difference_rows(comparisons: list[dict[str, Any]]) -> list[list[str]]:
    """One comparison: its measures; several: Dice of each."""
    several = len(comparisons) > 1
    p = "p (Holm)" if several else "p"
    keys = ["per_unit", *["per_fold"] * ("per_fold" in comparisons[0]["measures"]["dice"])]
    rows = [["Difference", "Pooled", "Per unit", p, *["Per fold", p] * ("per_fold" in keys)]]
    for comparison in comparisons:
        for name, entry in comparison["measures"].items():
            if several and name != "dice":
                continue
            label = _named(name, entry["unit"])
            if several:
                label += f", {comparison['first']} less {comparison['second']}"
            row = [label, _cell(entry.get("pooled_difference"), entry["unit"], "\n")]
            for key in keys:
                test = entry.get(key)
                cell = _cell(test["difference"], entry["unit"], "\n") if test else _DASH
                # Folds are few: their interval stands in the Markdown table, which has room for it.
                row.append(cell.partition("\n")[0] if key == "per_fold" else cell)
                row.append(_p(test["p_holm" if several else "p_value"]) if test else _DASH)
            rows.append(row)
    return rows


def _undefined(measures: dict[str, Any]) -> str | None:
    parts = []
    for name, entry in measures.items():
        for average, what in (("per_image_mean", "slices"), ("per_volume_mean", "cases")):
            if average in entry and entry[average]["undefined"]:
                values = entry[average]
                parts.append(f"{NAMES[name]} {values['undefined']} of {values['values']} {what}")
    return f"Left out of means because undefined: {', '.join(parts)}." if parts else None


def _named(name: str, unit: str) -> str:
    return f"{NAMES[name]} {dict.fromkeys(('1', 'percent'), '%').get(unit, unit)}"


def _cell(entry: dict[str, Any] | None, unit: str, between: str) -> str:
    """A value with its interval, or for folds with its standard deviation."""
    if entry is None or entry["value"] is None:
        return _DASH
    scale = 100 if unit == "1" else 1
    value = _number(entry["value"], 2, scale)
    if "folds" in entry:
        return value + (f"{between}± {_number(entry['sd'], 2, scale)}" if entry["sd"] is not None else "")
    if entry["low"] is None:
        return value
    return f"{value}{between}[{_number(entry['low'], 2, scale)}, {_number(entry['high'], 2, scale)}]"


def _number(value: float | str | None, decimals: int, scale: float = 1) -> str:
    if value is None:
        return _DASH
    if isinstance(value, str):  # "inf"
        return value.replace("inf", "∞")
    text = f"{scale * value:.{decimals}f}"
    return text if float(text) else text.removeprefix("-")


def _p(value: float | None) -> str:
    if value is None:
        return _DASH
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _lines(rows: list[list[str]]) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]]) + "\n"


def _table(rows: list[list[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), expand=False)
    for i, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table
