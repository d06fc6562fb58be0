"""`asegnet-fast crossval`: every model with every loss on every fold."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from asegnet_fast.cli._options import (
    CONFIG,
    DATA,
    NETWORK,
    STALE,
    TRAINING,
    WAIT,
    WORKERS,
    read_sharing,
    read_workers,
    takes_settings,
)
from asegnet_fast.cli._run import run_crossval
from asegnet_fast.training.config import read_settings


@takes_settings("data", "out", ..., "models", "losses", *NETWORK, *DATA, *TRAINING, "profile")
def crossval(
    given: dict[str, Any],
    config: CONFIG = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out, or join other processes and machines that are at it.",
            show_default=False,
        ),
    ] = False,
    workers: WORKERS = "1",
    wait: WAIT = True,
    stale_seconds: STALE = None,
    table1: Annotated[
        bool,
        typer.Option("--table1", help="The paper's seven losses instead of --losses.", show_default=False),
    ] = False,
) -> None:
    """Cross-validate models with losses, and write the table and the pictures.

    Defaults are the paper's recipe. Interrupted with Ctrl-C, a run is continued with --resume. Started again with
    --resume on more machines that see the same folder, the command shares the folds with those at work. torchrun
    -m asegnet_fast crossval ... divides each batch over its processes.
    """
    if table1:
        given["table1"] = True
    settings = read_settings(config, given)
    run_crossval(settings, resume, read_workers(workers), read_sharing(wait, stale_seconds))
