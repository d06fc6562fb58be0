"""A small synthetic data set and small finished runs, made once for all tests of the program."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from asegnet_fast.data import write_phantom
from asegnet_fast.training.config import Settings
from asegnet_fast.training.crossval import cross_validate, load_data
from asegnet_fast.training.jobs import Sharing
from asegnet_fast.training.progress import Reporter

_folder = tempfile.TemporaryDirectory(prefix="asegnet-fast-tests-")
SMALL: dict[str, Any] = {
    "widths": (4, 8),
    "convs": (1, 1),
    "size": 32,
    "folds": 2,
    "epochs": 3,
    "batch_size": 4,
    "checkpoint_seconds": 0.0,
    "device": "cpu",
}
# The small settings for the command line, but for the number of epochs.
TINY = "--widths 4,8 --convs 1,1 --size 32 --folds 2 --batch-size 4 --device cpu".split()


@functools.cache
def data_folder() -> str:
    """Four synthetic patients."""
    return str(write_phantom(Path(_folder.name) / "data", patients=4, slices_per_patient=8, size=48, seed=3))


def settings(out: Path, **changes: Any) -> Settings:
    """The small settings with changes."""
    return Settings(**({"data": data_folder(), "out": str(out)} | SMALL | changes))


def quiet() -> Reporter:
    """A reporter that shows nothing."""
    return Reporter(Console(quiet=True))


def run(
    out: Path,
    resume: bool = False,
    reporter: Reporter | None = None,
    sharing: Sharing | None = None,
    **changes: Any,
) -> tuple:
    """Cross-validate with the small settings; returns (summary, folds given up)."""
    wanted = settings(out, **changes)
    return cross_validate(wanted, load_data(wanted), reporter or quiet(), resume, sharing=sharing)


@functools.cache
def finished_run() -> Path:
    """Both models with two losses, through to the end. Tests read it and leave it as it is."""
    out = Path(_folder.name) / "run"
    run(out, losses=("dl", "ftl:0.3:0.7:4/3"))
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
