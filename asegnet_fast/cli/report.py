"""`asegnet-fast report`: tables and pictures from a run's files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from asegnet_fast.cli._run import load, write_figures, write_tables
from asegnet_fast.errors import InputError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that crossval wrote, finished or not.")],
    data: Annotated[
        str | None, typer.Option(help="The run's data, where they have moved.", show_default=False)
    ] = None,
) -> None:
    """Rebuild the table and the pictures from a run's files."""
    from asegnet_fast.training.crossval import summarise_run
    from asegnet_fast.training.progress import Reporter
    from asegnet_fast.training.run_folder import read_run

    settings, config = read_run(run)
    folder = data or settings.data
    with Reporter() as reporter:
        summary = summarise_run(run)
        slices = None
        if data is not None or Path(folder).is_dir():
            slices = load(dataclasses.replace(settings, data=folder), reporter)
            if slices.fingerprint != config["data"]["fingerprint"]:
                raise InputError(f"{folder}: expected the data of the run {run}, got other slices")
        write_tables(summary, run, reporter)
        if slices is None:  # the tables need no data
            raise InputError(f"--data: expected the run's data, got no folder {folder} (say where they are)")
        write_figures(summary, run, slices, reporter)
