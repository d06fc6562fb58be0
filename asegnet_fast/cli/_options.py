"""The options that are fields of `Settings`: their help stands here once, for every command that takes them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import EllipsisType
from typing import Annotated, Any

import typer

from asegnet_fast.errors import InputError
from asegnet_fast.training.augment import SPELLING as AUGMENTATIONS
from asegnet_fast.training.claims import STALE_SECONDS
from asegnet_fast.training.config import CHOICES, MODELS, Settings, option
from asegnet_fast.training.jobs import Sharing
from asegnet_fast.training.losses import SPELLING

_HELP = {
    "data": "Folder with the CT data in NIfTI.",
    "out": "Folder of the run; made where it is absent.",
    "models": f"Some of {', '.join(MODELS)}.",
    "losses": f"Of {SPELLING}; numbers may be fractions.",
    "preset": "Widths and depth of both networks.",
    "widths": "Own channels of each section, e.g. 16,32,64.",
    "convs": "Own number of convolutions of each section, e.g. 2,2,3.",
    "block": "Convolutions one after the other, or each taking all maps before it (DenseNet).",
    "growth": "Channels that each convolution of a dense section adds.",
    "decoder_relu": "ReLU in the decoders (default) or none.",
    "final_relu": "Batch normalisation and ReLU on the logits, as in MATLAB's SegNet (default), or none.",
    "join": "How A-SegNet joins the gate's output.",
    "gate_mode": "Form of A-SegNet's attention gate.",
    "split": "Keep patients whole (honest), or shuffle slices (the paper's, leaky).",
    "folds": "Number of folds.",
    "groups": "CSV file,first,last,patient: which slices are one patient's.",
    "intensity": "How values become grey levels.",
    "labels": "One lesion class, or the labels kept apart.",
    "select": "Slices with a label only, or all.",
    "cache": "Folder that keeps decoded slices for the next start.",
    "size": "Side of the slices in pixels.",
    "epochs": "Passes over the training slices.",
    "batch_size": "Slices in a step.",
    "lr": "Learning rate at the start.",
    "lr_halve_every": "Epochs until it is halved.",
    "momentum": "Momentum of SGD.",
    "weight_decay": "Weight decay of SGD.",
    "augment": f"Random changes of the training slices, some of {AUGMENTATIONS}; default none, as the paper.",
    "inner_validation": ("Share of the training part set aside to choose checkpoint_best.pt; 0 for none."),
    "early_stopping": "Stop after so many epochs without a better inner validation; 0 for never.",
    "tested_epoch": "Which network is tested: after the last epoch, or the best on the inner validation.",
    "seed": "Decides folds, weights and the order of slices.",
    "device": "auto, cpu, cuda or cuda:N.",
    "precision": "Number format of the network's arithmetic.",
    "backend": "Which implementation serves the fused operations.",
    "deterministic": "The same bits at every repetition on one machine (default), or whatever is fastest.",
    "checkpoint_seconds": "Least time between checkpoints; 0 for one each epoch.",
    "profile": "Measure the share of time outside convolutions.",
}
#: What `crossval` and `train` take, in the order of --help: the network, the data, the training.
NETWORK = ("preset", "widths", "convs", "block", "growth", "decoder_relu", "final_relu", "join", "gate_mode")
DATA = ("split", "folds", "groups", "intensity", "labels", "select", "cache", "size")
TRAINING = (
    "epochs",
    "batch_size",
    "lr",
    "lr_halve_every",
    "momentum",
    "weight_decay",
    "augment",
    "inner_validation",
    "early_stopping",
    "tested_epoch",
    "seed",
    "device",
    "precision",
    "backend",
    "deterministic",
    "checkpoint_seconds",
)
_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def some_path(text: str) -> Path:
    """Reads the value of a path option; nothing is no path, though pathlib takes it for the current folder.

    Raises:
        typer.BadParameter: nothing was given.
    """
    if not text:
        raise typer.BadParameter("expected a path, got ''")
    return Path(text)


def path_option(help: str, *flags: str, metavar: str = "PATH") -> Any:
    """An option whose value is a path, never an empty one."""
    return typer.Option(*flags, help=help, show_default=False, metavar=metavar, parser=some_path)


def takes_settings(*names: str | EllipsisType) -> Callable[[Callable], Callable]:
    """Give a command the options of some fields of `Settings`; it gets them as its first argument, `given`.

    Args:
        names: the fields in the order of `--help`; an ellipsis stands for the command's own parameters.

    Returns:
        A decorator for `command(given, own parameters)`; `given` maps each field to its value, None where the user
        said nothing.
    """

    def decorate(command: Callable) -> Callable:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = []
        for name in names:
            parameters += own if name is ... else [_parameter(name)]
        fields = [name for name in names if name is not ...]

        def with_settings(**values: Any) -> Any:
            given = {name: values.pop(name) for name in fields}
            return command(given, **values)

        with_settings.__name__, with_settings.__doc__ = command.__name__, command.__doc__
        with_settings.__signature__ = inspect.Signature(
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_settings

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    """The option of a field; its default and its choices are shown from `Settings`."""
    field, help = _FIELDS[name], _HELP[name]
    if (default := field.default) not in (None, (), dataclasses.MISSING) and not isinstance(default, bool):
        help += f" [default: {','.join(default) if isinstance(default, tuple) else default}]"
    flag = option(name)
    if switch := str(field.type) == "bool":
        flag += "/--no-" + flag.removeprefix("--")
    # Numbers are taken as text and converted with the YAML file's, so that both are refused in the same words.
    metavar = "|".join(CHOICES[name]) if name in CHOICES else {"int": "N", "float": "X"}.get(str(field.type))
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            (bool if switch else str) | None,
            typer.Option(flag, help=help, show_default=False, metavar=None if switch else metavar),
        ],
    )


# Options of every command that trains.
CONFIG = Annotated[
    Path | None, path_option("YAML file with these options as keys; options win.", metavar="FILE")
]

# Options of the commands whose work several processes can share. Numbers are text here, too.
WORKERS = Annotated[
    str,
    typer.Option(help="Processes of this machine that share the work, GPUs dealt out in turn.", metavar="N"),
]
WAIT = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Wait for what others train, to take it over if they die; or end when nothing is free.",
    ),
]
STALE = Annotated[
    str | None,
    typer.Option(
        help=f"Silence after which another machine's work is taken over. [default: {STALE_SECONDS:g}]",
        metavar="X",
        show_default=False,
    ),
]


def read_workers(text: str) -> int:
    """The number of `--workers`.

    Raises:
        ValueError: not a whole number from 1 to 256.
    """
    if not text.isdecimal() or not 1 <= len(text) <= 3 or not 1 <= int(text) <= 256:
        raise InputError(f"--workers: expected a whole number from 1 to 256, got {text!r}")
    return int(text)


def read_sharing(wait: bool, stale_seconds: str | None) -> Sharing:
    """The options `--wait` and `--stale-seconds`.

    Raises:
        ValueError: not a number of at least 1 second.
    """
    if stale_seconds is None:
        return Sharing(wait)
    try:
        seconds = float(stale_seconds)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise InputError(f"--stale-seconds: expected a number of seconds >= 1, got {stale_seconds!r}")
    return Sharing(wait, seconds)
