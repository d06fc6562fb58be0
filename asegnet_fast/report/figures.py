"""All pictures of a run: what is drawn, under which names, and what could not be drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.statistics import Interval
from asegnet_fast.report import charts, strips
from asegnet_fast.report.cases import choose_cases, spread_slices

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet

SAMPLES = 6


@dataclass
class Figures:
    """What was drawn.

    Attributes:
        charts: name -> SVG file in figures/, in the order drawn.
        strips: name -> CT pictures; each also lies in figures/ as PNG.
        problems: one line for each piece that could not be made.
        checkpoints: the files whose networks were asked.
    """

    charts: dict[str, Path] = field(default_factory=dict)
    strips: dict[str, strips.Strips] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)


def write_figures(
    run: Path,
    summary: dict[str, Any],
    intervals: dict[str, dict[str, Interval]],
    slices: SliceSet | None = None,
    root: Path | None = None,
) -> Figures:
    """Write the pictures of a run into its folder figures/.

    A damaged piece costs the pictures that need it and no other; it is named in `problems`.

    Args:
        run: the folder, with its checkpoints, folds.json and history.csv files.
        summary: the content of its summary.json.
        intervals: of every row, as `counts.row_intervals` finds them.
        slices: the data the run was made on; None: no CT pictures.
        root: the folder of these data; None: labels that the run merged stay merged in the data samples.
    """
    run, folder = Path(run), Path(run) / "figures"
    figures = Figures()

    def chart(name: str, draw: Any) -> None:
        path = folder / f"{name}.svg"
        try:
            draw(path)
            figures.charts[name] = path
        except InputError as error:
            path.unlink(missing_ok=True)  # one of an earlier state would not be of this run
            if str(error) not in figures.problems:
                figures.problems.append(str(error))

    for measure in charts.MEASURE_NAMES:
        chart(f"comparison-{measure}", lambda path, m=measure: charts.comparison(summary, intervals, m, path))
    chart("training_curves", lambda path: charts.training_curves(run, summary, path))
    for row in summary["rows"]:
        chart(
            f"folds--{row['folder']}",
            lambda path, row=row: charts.fold_curves(run, row, path),
        )
    if slices is None:
        return figures

    cases = choose_cases(run, summary, slices)
    figures.problems += cases.problems
    figures.checkpoints = cases.checkpoints
    drawn = {
        "data_samples": _samples(slices, root, figures.problems),
        "qualitative": strips.qualitative(summary["rows"], slices, cases),
        "attention": strips.attention(summary["rows"], slices, cases),
    }
    for name, strips_of in drawn.items():
        path = folder / f"{name}.png"
        if strips_of.strips:
            figures.strips[name] = strips_of
            strips.write_strips(strips_of, path)
        else:
            path.unlink(missing_ok=True)
    return figures


def _samples(slices: SliceSet, root: Path | None, problems: list[str]) -> strips.Strips:
    from asegnet_fast.data import load_labels

    chosen = spread_slices(slices, np.arange(len(slices.images)), SAMPLES)
    labels = None
    if root is not None and slices.num_classes == 2 and len(slices.label_values) > 1:
        cases = [(slices.sources[i], slices.indices[i]) for i in chosen]
        try:
            labels = load_labels(root, cases, slices.images.shape[1])
        except InputError as error:
            problems.append(str(error))
    return strips.data_samples(slices, chosen, labels)
