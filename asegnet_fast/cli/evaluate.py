"""`asegnet-fast evaluate`: measures, intervals and paired tests of predicted masks, checkpoints and finished runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asegnet_fast.cli._options import path_option, some_path
from asegnet_fast.errors import InputError

if TYPE_CHECKING:
    from asegnet_fast.evaluation import Record
    from asegnet_fast.training.progress import Reporter

_EVERY_PAIR = "all"
_SLICES = ("auto", "test", "all")
_SELECTED = {"all": "on all slices", "lesion": "on slices with a true lesion"}


def _choice(help: str, *choices: str) -> Any:
    return typer.Option(help=help, metavar="|".join(choices), show_default=False)


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Folder that crossval wrote: its rows on the test slices.", parser=some_path
        ),
    ] = None,
    predictions: Annotated[
        Path | None, path_option("Predicted NIfTI masks of any tool: a folder or a file.")
    ] = None,
    truth: Annotated[Path | None, path_option("True masks of the same names: a folder or a file.")] = None,
    checkpoint: Annotated[
        Path | None,
        path_option("A checkpoint, or a row's folder in a run: every fold's on its own test slices."),
    ] = None,
    data: Annotated[Path | None, path_option("Folder with images and masks for --checkpoint.")] = None,
    out: Annotated[Path | None, path_option("Folder for the results [default: RUN/evaluation].")] = None,
    compare: Annotated[
        Path | None,
        path_option(
            "Paired tests against this: other predicted masks, another checkpoint or an earlier evaluation.json; of a "
            "RUN, the row that every other is compared with (its first by default), or 'all' for every pair."
        ),
    ] = None,
    labels: Annotated[
        str,
        _choice(
            "All labels as one class (default), or each by itself; a RUN's are as trained.", "merge", "keep"
        ),
    ] = "merge",
    select: Annotated[
        str | None,
        _choice(
            "All slices (default with --predictions), or those with a true lesion (default with --checkpoint); a "
            "RUN's are as trained.",
            *_SELECTED,
        ),
    ] = None,
    slices: Annotated[
        str,
        _choice(
            "With --checkpoint: the test slices of its fold, every slice (for data it was not trained on), or auto "
            "(default): by whether --data has files of the run's names.",
            *_SLICES,
        ),
    ] = "auto",
    groups: Annotated[
        Path | None, path_option("CSV file,first,last,patient: whose the slices of a file are.")
    ] = None,
    empty: Annotated[
        str,
        typer.Option(
            help="Conventions for empty masks: default, nnunet, monai, brats or MEASURE=BOTH/ONE, e.g. "
            "dice=nan,hd95=zero/diagonal; of nan, zero, one, inf, diagonal, or mm.",
            metavar="SPEC",
        ),
    ] = "default",
    tolerance: Annotated[float, typer.Option(help="Of Surface Dice, in mm.", metavar="X")] = 3.0,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", metavar="N")] = 2000,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.", metavar="X")] = 0.95,
    method: Annotated[
        str, typer.Option(help="Kind of bootstrap interval.", metavar="bca|percentile")
    ] = "bca",
    seed: Annotated[int, typer.Option(help="Of the resamples.", metavar="N")] = 0,
    device: Annotated[str, typer.Option(help="Of the networks: auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="Number format of the networks' arithmetic.", metavar="fp32|bf16")
    ] = "fp32",
) -> None:
    """Measure segmentations, with intervals, and compare models.

    Dice, IoU, sensitivity, specificity, precision, HD95, average surface distance, Surface Dice and volume errors;
    pooled, per image, per volume and per fold. Give a RUN, --predictions with --truth, or --checkpoint with --data.
    Intervals and tests resample patients where they are known, else files. Writes evaluation.json, evaluation.md,
    cases.csv and slices.csv.
    """
    from asegnet_fast.environment import choose_device, keep_large_allocations
    from asegnet_fast.evaluation import Bootstrap, Conventions, evaluate_records, write_evaluation
    from asegnet_fast.evaluation.tables import short_foot, terminal_tables
    from asegnet_fast.files import check_writable
    from asegnet_fast.training.progress import Reporter

    _one_of("--labels", labels, ("merge", "keep"))
    _one_of("--select", select, (*_SELECTED, None))
    _one_of("--slices", slices, _SLICES)
    _one_of("--precision", precision, ("fp32", "bf16"))
    device = choose_device(device)
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"--tolerance: expected millimetres, 0 or more, got {tolerance:g}")
    conventions = Conventions.parse(empty)
    try:
        options = Bootstrap(resamples, level, method, seed)
    except InputError as error:
        raise InputError(f"--{error}") from None
    given = [n for n, v in (("RUN", run), ("--predictions", predictions), ("--checkpoint", checkpoint)) if v]
    if len(given) != 1:
        raise InputError(
            f"RUN, --predictions, --checkpoint: expected one of them, got {' and '.join(given) or 'none'}"
        )
    for needed, value, beside in (("--truth", truth, "--predictions"), ("--data", data, "--checkpoint")):
        if (value is None) == (beside in given):
            raise InputError(
                f"{needed}: expected together with {beside}, got {'it' if value else beside} alone"
            )
    if run is not None and groups is not None:
        raise InputError("--groups: expected no table, because a RUN knows its patients, got one")
    if out is None and run is None:
        raise InputError("--out: expected a folder for the results, got nothing")
    out = out or run / "evaluation"
    check_writable(out)

    with Reporter() as reporter:
        if run is not None:
            measured = _measure_run(run, compare)
        else:
            select = select or ("lesion" if predictions is None else "all")
            kinds = {"labels": labels, "select": select, "groups": groups, "tolerance": tolerance}
            if predictions is not None:
                measured = _measure_masks(predictions, truth, compare, kinds, reporter)
            else:
                keep_large_allocations()
                where = {"device": device, "precision": precision}
                measured = _measure_networks(checkpoint, data, compare, slices, kinds, where, reporter)
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


def _measure_run(run: Path, compare: Path | None) -> _Measured:
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
    if str(compare) == _EVERY_PAIR:
        compared = [(j, i) for i, j in combinations(range(len(records)), 2)]
    elif compare is None or str(compare) in names:
        base = names.index(str(compare)) if compare else 0
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
    predictions: Path, truth: Path, compare: Path | None, kinds: dict[str, Any], reporter: Reporter
) -> _Measured:
    from asegnet_fast.data.notes import Notes
    from asegnet_fast.evaluation import gather, match_masks, measure_masks

    notes = Notes()
    # Names are matched for every model before minutes of measuring.
    models = {str(predictions): match_masks(truth, predictions)}
    earlier: list[Record] = []
    if compare is not None and not _is_earlier(compare):
        if str(compare) in models:
            raise InputError(f"--compare: expected other masks than --predictions, got the same ({compare})")
        models[str(compare)] = match_masks(truth, compare, "--compare")
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
        {"kind": "masks", "truth": str(truth), **_plain(kinds)},
        f"Measured on the true masks' own grid, {_SELECTED[kinds['select']]}.",
        notes.lines(len(models[str(predictions)]), "true masks"),
    )


def _measure_networks(
    checkpoint: Path,
    data: Path,
    compare: Path | None,
    slices: str,
    kinds: dict[str, Any],
    where: dict[str, str],
    reporter: Reporter,
) -> _Measured:
    from asegnet_fast.data.layout import discover
    from asegnet_fast.data.notes import Notes
    from asegnet_fast.evaluation import belongs_to_run, fold_slices, gather, measure_volumes
    from asegnet_fast.inference import load_ensemble

    notes = Notes()
    earlier: list[Record] = []
    places = [checkpoint]
    if compare is not None and _is_earlier(compare):
        earlier = _earlier(compare, "another checkpoint or an evaluation.json")
    elif compare is not None:
        places.append(compare)
    models = []
    for place in places:
        ensemble = load_ensemble([place], **where)
        member = ensemble.members[0]
        run = member.path.parent.parent.parent
        listed = fold_slices(run) if member.fold is not None and (run / "folds.json").is_file() else None
        own = listed is not None and belongs_to_run(data, listed)
        if slices == "test" and listed is None:
            raise InputError(f"--slices: expected a checkpoint inside its run for 'test', got {place}")
        if slices == "all" and own:
            notes.add("slices that the networks were trained on may be among those measured", str(place))
        test = slices == "test" or (slices == "auto" and own)
        if test and kinds["groups"] is not None:
            raise InputError("--groups: expected no table, because the run knows its patients, got one")
        predictors = {None: ensemble}
        if test:
            predictors = {m.fold: dataclasses.replace(ensemble, members=(m,)) for m in ensemble.members}
        models.append((str(place), predictors, listed if test else None))
    records = [
        gather(
            name,
            measure_volumes(data, predictors, listed, **kinds, progress=reporter.measuring, notes=notes),
        )
        for name, predictors, listed in models
    ]
    test = models[0][2] is not None
    return _Measured(
        records + earlier,
        [(0, j) for j in range(1, len(records + earlier))],
        {"kind": "checkpoint", "data": str(data), "test_slices_only": test, **_plain(kinds), **where},
        f"Predicted, and measured on the masks' own grid, {_SELECTED[kinds['select']]}"
        + ("; only the test slices of each network's fold." if test else "; every volume of the folder."),
        notes.lines(len(discover(data)[0])),
    )


def _is_earlier(path: Path) -> bool:
    return path.suffix == ".json" or (path / "evaluation.json").is_file()


def _earlier(place: Path, expected: str) -> list[Record]:
    """The records of an earlier evaluation, named after it: the same rows of two runs may meet."""
    from asegnet_fast.evaluation import read_records

    if not place.exists():
        raise InputError(f"--compare: expected {expected}, got {str(place)!r}")
    return [dataclasses.replace(r, name=f"{r.name} in {place}") for r in read_records(place)]


def _plain(kinds: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in kinds.items()}


def _one_of(option: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{option}: expected one of {', '.join(filter(None, allowed))}, got {value!r}")
