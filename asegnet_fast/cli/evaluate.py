"""`asegnet-fast evaluate`: measures, intervals and paired tests of predicted masks and of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asegnet_fast.errors import InputError

if TYPE_CHECKING:
    from asegnet_fast.evaluation import Record
    from asegnet_fast.training.progress import Reporter

_EVERY_PAIR = "all"


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Folder that crossval wrote: its rows on the test slices."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Predicted NIfTI masks of any tool: a folder or a file.", show_default=False),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="True masks of the same names: a folder or a file.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results [default: RUN/evaluation].", show_default=False),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Paired tests against this: other predicted masks or an earlier evaluation.json; of a RUN, the row "
            "that every other is compared with (its first by default), or 'all' for every pair.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Labels as one class, or each by itself (a RUN's are as trained).", metavar="merge|keep"
        ),
    ] = "merge",
    select: Annotated[
        str,
        typer.Option(
            help="All slices, or those with a true lesion (a RUN's are as trained).", metavar="all|lesion"
        ),
    ] = "all",
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV file,first,last,patient for the true masks.", show_default=False),
    ] = None,
    empty: Annotated[
        str,
        typer.Option(
            help="Conventions for empty masks: default, nnunet, monai, brats or MEASURE=BOTH/ONE, e.g. "
            "dice=nan,hd95=zero/diagonal; of nan, zero, one, inf, diagonal, or mm.",
            metavar="SPEC",
        ),
    ] = "default",
    tolerance: Annotated[float, typer.Option(help="Of Surface Dice, in mm.", metavar="MM")] = 3.0,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", metavar="N")] = 2000,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.", metavar="X")] = 0.95,
    method: Annotated[
        str, typer.Option(help="Kind of bootstrap interval.", metavar="bca|percentile")
    ] = "bca",
    seed: Annotated[int, typer.Option(help="Of the resamples.", metavar="N")] = 0,
) -> None:
    """Measure segmentations, with intervals, and compare models.

    Dice, IoU, sensitivity, specificity, precision, HD95, average surface distance, Surface Dice and volume errors;
    pooled, per image, per volume and per fold. Give a RUN, or --predictions with --truth. Intervals and tests resample
    patients where they are known, else files. Writes evaluation.json, evaluation.md, cases.csv and slices.csv.
    """
    from asegnet_fast.evaluation import Bootstrap, Conventions, evaluate_records, write_evaluation
    from asegnet_fast.evaluation.tables import short_foot, terminal_tables
    from asegnet_fast.training.progress import Reporter

    _one_of("--labels", labels, ("merge", "keep"))
    _one_of("--select", select, ("lesion", "all"))
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"--tolerance: expected millimetres, 0 or more, got {tolerance:g}")
    conventions = Conventions.parse(empty)
    try:
        options = Bootstrap(resamples, level, method, seed)
    except InputError as error:
        raise InputError(f"--{error}") from None
    if (run is None) == (predictions is None):
        got = "neither" if run is None else "both"
        raise InputError(f"RUN, --predictions: expected one of them, got {got}")
    if run is not None and (truth is not None or groups is not None):
        raise InputError("--truth, --groups: expected with --predictions only, got a RUN beside them")
    if predictions is not None and truth is None:
        raise InputError("--truth: expected the true masks beside --predictions, got nothing")
    if out is None and run is None:
        raise InputError("--out: expected a folder for the results, got nothing")
    out = out or run / "evaluation"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: expected a folder, got a file ({out})")

    with Reporter() as reporter:
        if run is not None:
            measured = _measure_run(run, compare)
        else:
            kinds = {"labels": labels, "select": select, "groups": groups, "tolerance": tolerance}
            measured = _measure_masks(predictions, truth, compare, kinds, reporter)
        content = evaluate_records(
            measured.records,
            conventions,
            options,
            compared=measured.compared,
            source=measured.source,
            measured=measured.sentence,
            notes=measured.notes,
            tolerance=tolerance,
        )
        write_evaluation(out, content, measured.records, conventions)
        for table in terminal_tables(content):
            reporter.console.print(table)
            reporter.say("")
        for line in short_foot(content):
            reporter.say(line)
        reporter.say(f"wrote {out / 'evaluation.json'}, evaluation.md, cases.csv and slices.csv")


@dataclass(frozen=True)
class _Measured:
    """Records, which of them are compared, and what is said about them."""

    records: list[Record]
    compared: list[tuple[int, int]]
    source: dict[str, Any]
    sentence: str
    notes: list[str]


def _measure_run(run: Path, compare: str | None) -> _Measured:
    from asegnet_fast.evaluation import fold_slices, run_record
    from asegnet_fast.training.crossval import finished_rows, read_run

    settings, config = read_run(run)
    values = tuple(config["data"]["label_values"]) if settings.labels == "keep" else (1,)
    slices = fold_slices(run)
    notes = []
    records = []
    for row, found in finished_rows(run, settings, config):
        if len(found) < settings.folds:
            notes.append(f"{row.folder}: {len(found)} of {settings.folds} folds are finished; left out")
            continue
        records.append(run_record(row.folder, found, slices, values))
    if not records:
        raise InputError(f"{run}: expected a row with all {settings.folds} folds finished, got none")
    names = [record.name for record in records]
    if compare == _EVERY_PAIR:
        compared = [(j, i) for i, j in combinations(range(len(records)), 2)]
    elif compare is None or compare in names:
        base = names.index(compare) if compare else 0
        compared = [(i, base) for i in range(len(records)) if i != base]
    else:
        earlier = _earlier(compare, f"a row of the run ({', '.join(names)}), 'all' or an evaluation.json")
        compared = [(i, len(records) + j) for i in range(len(records)) for j in range(len(earlier))]
        records += earlier
    return _Measured(
        records,
        compared,
        {"kind": "run", "run": str(run), "split": settings.split, "data": config["data"]},
        f"Measured on the network's pixels ({settings.size} x {settings.size}), so without distances and volumes; "
        f"split by {settings.split}.",
        notes + [f"data: {note}" for note in config["data"]["notes"]],
    )


def _measure_masks(
    predictions: Path, truth: Path, compare: str | None, kinds: dict[str, Any], reporter: Reporter
) -> _Measured:
    from asegnet_fast.evaluation import Notes, gather, match_masks, measure_masks

    notes = Notes()
    # Names are matched for every model before minutes of measuring.
    models = {str(predictions): match_masks(truth, predictions)}
    earlier: list[Record] = []
    if compare is not None and _is_masks(Path(compare)):
        if compare in models:
            raise InputError(f"--compare: expected other masks than --predictions, got the same ({compare})")
        models[compare] = match_masks(truth, Path(compare), "--compare")
    elif compare is not None:
        earlier = _earlier(compare, "predicted masks or an evaluation.json")
    records = [
        gather(name, measure_masks(pairs, **kinds, progress=reporter.measuring, notes=notes))
        for name, pairs in models.items()
    ]
    records += earlier
    return _Measured(
        records,
        [(0, j) for j in range(1, len(records))],
        {"kind": "masks", "truth": str(truth), "labels": kinds["labels"], "select": kinds["select"]}
        | {"groups": str(kinds["groups"]) if kinds["groups"] else None},
        "Measured on the true masks' own grid"
        + (", on slices with a true lesion." if kinds["select"] == "lesion" else ", on all slices."),
        notes.lines(),
    )


def _is_masks(path: Path) -> bool:
    return path.suffix != ".json" and path.exists() and not (path / "evaluation.json").is_file()


def _earlier(place: str, expected: str) -> list[Record]:
    """The records of an earlier evaluation."""
    from asegnet_fast.evaluation import read_records

    if not Path(place).exists():
        raise InputError(f"--compare: expected {expected}, got {place!r}")
    return read_records(Path(place))


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{option}: expected one of {', '.join(allowed)}, got {value!r}")
