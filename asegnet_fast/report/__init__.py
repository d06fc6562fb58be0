"""Tables, pictures and one HTML page made from the files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet


def write_report(
    run: Path,
    summary: dict[str, Any],
    slices: SliceSet | None = None,
    root: Path | None = None,
    out: Path | None = None,
) -> list[str]:
    """Write conclusions.csv, the pictures in figures/, and the HTML page of a run.

    Args:
        run: the folder of a run, with table1.csv and table1.md in it.
        summary: the content of its summary.json.
        slices: the data the run was made on; None: the page has no CT pictures.
        root: the folder of these data; see `figures.write_figures`.
        out: the page; None: report.html in `run`.

    Returns:
        One line for each piece that is absent or damaged and therefore not on the page.

    Raises:
        ValueError: config.json, folds.json or a metrics.json is absent or damaged; the message names it.
    """
    from asegnet_fast.files import read_json, write_csv
    from asegnet_fast.report.conclusions import draw_conclusions, records
    from asegnet_fast.report.counts import read_counts, row_intervals
    from asegnet_fast.report.figures import write_figures
    from asegnet_fast.report.limits import limits
    from asegnet_fast.report.page import write_page

    run = Path(run)
    settings = read_json(run / "config.json")["settings"]
    counts = read_counts(run, summary)
    intervals = row_intervals(counts)
    answers = draw_conclusions(summary, counts, intervals)
    write_csv(run / "conclusions.csv", records(answers))
    figures = write_figures(run, summary, intervals, slices, root)
    weak = limits(run, summary, settings, counts, intervals)
    write_page(out or run / "report.html", run, summary, settings, counts, intervals, answers, weak, figures)
    return figures.problems
