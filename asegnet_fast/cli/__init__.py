"""The program `asegnet-fast`: one module a command.

Exit status: 0 done; 2 wrong usage or input, with one line that names the option or file; 130 interrupted (Ctrl-C),
143 terminated (SIGTERM); 1 anything else, the program's own faults among it. matplotlib is imported where pictures are
drawn; torch comes with the package, because importing that registers the operations.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from asegnet_fast.cli import crossval, demo, evaluate, info, predict, report, train, tune
from asegnet_fast.cli._run import PROGRAM
from asegnet_fast.errors import InputError
from asegnet_fast.training import distributed

TRACEBACK = "ASEGNET_FAST_TRACEBACK"
# typer brings its own copy of click or the installed one, by version; its public exception leads to either's base.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Segmentation of CT slices with SegNet and A-SegNet: cross-validation, tables and pictures.",
)
for command in (  # the order of --help
    crossval.crossval,
    train.train,
    tune.tune,
    predict.predict,
    evaluate.evaluate,
    demo.demo,
    report.report,
    info.info,
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: the command line after the program's name, or None for the process's own.

    Returns:
        The exit status.
    """
    try:
        status = app(
            args=None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False
        )
        return status if isinstance(status, int) else 0
    except UsageError as error:
        message, status, failure = error.format_message(), 2, error
    except InputError as error:
        message, status, failure = str(error), 2, error
    except OSError as error:
        message, status, failure = (
            f"{error.filename or 'input or output'}: {error.strerror or error}",
            1,
            error,
        )
    except (typer.Abort, KeyboardInterrupt) as error:
        message, status, failure = "interrupted", 130, error
    except Exception as error:
        from asegnet_fast.training.loop import TrainingError

        failure = error
        if isinstance(error, (TrainingError, distributed.PeerError)):
            message, status = str(error), 1
        elif os.environ.get(TRACEBACK):
            raise
        else:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            message = (
                f"a fault of the program: {type(error).__name__}: {error} ({where}; {TRACEBACK}=1 shows all)"
            )
            status = 1
    if distributed.speaks(failure):
        who = PROGRAM if distributed.first() else f"{PROGRAM}, process {distributed.rank()}"
        print(f"{who}: {' '.join(message.split())}", file=sys.stderr)
    return status
