"""`asegnet-fast report`: tables, pictures and one HTML page from a run's files."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from asegnet_fast.cli._run import PROGRAM, load, write_report, write_tables
from asegnet_fast.errors import InputError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that crossval wrote, finished or not.")],
    data: Annotated[
        str | None, typer.Option(help="The run's data, where they have moved.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page to write.  [default: RUN/report.html]", show_default=False)
    ] = None,
) -> None:
    """Rebuild the tables, the pictures and the HTML page from a run's files.

    The page is one file that needs nothing besides itself: the paper's table and figures with its numbers beside
    the run's, its conclusions put to the run with effect and interval, attention maps, learning curves, and where
    every number comes from. Without the data it has no CT pictures.
    """
    from asegnet_fast.training.crossval import summarise_run
    from asegnet_fast.training.progress import Reporter
    from asegnet_fast.training.run_folder import read_run

    settings, config = read_run(run)
    if out is not None:
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
        if out.is_dir() or not (there.is_dir() or there == out):
            what = "the folder" if out.is_dir() else "a path through a file,"
            raise InputError(f"--out: expected a file in a folder, got {what} {out}")
    folder = Path(data or settings.data)
    with Reporter() as reporter:
        summary = summarise_run(run)
        slices = None
        if data is not None or folder.is_dir():
            slices = load(dataclasses.replace(settings, data=str(folder)), reporter)
            if slices.fingerprint != config["data"]["fingerprint"]:
                raise InputError(f"{folder}: expected the data of the run {run}, got other slices")
        write_tables(summary, run, reporter)
        whole = write_report(summary, run, reporter, slices, folder, out)
    if slices is None:
        print(
            f"{PROGRAM}: note: no folder {folder}, so no CT pictures (--data says where it is)",
            file=sys.stderr,
        )
    if not whole:
        raise typer.Exit(2)
