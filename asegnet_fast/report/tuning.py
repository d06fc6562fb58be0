"""The pictures of a search, drawn by Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.files import replacing

if TYPE_CHECKING:
    import optuna

#: Parameters compare by what they explain only where there are some trials.
LEAST_TRIALS = 8
DPI = 130


def write_tuning_figures(study: optuna.Study, folder: Path) -> list[str]:
    """Draw history.png, slice.png, and with enough finished trials parallel.png and importance.png.

    Args:
        study: with at least one finished trial.
        folder: receives the pictures.

    Returns:
        The pictures' names.
    """
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as draw

    label = "inner Dice"
    values = [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    pictures: dict[str, Callable[[], Any]] = {
        "history.png": lambda: draw.plot_optimization_history(study, target_name=label),
        "slice.png": lambda: draw.plot_slice(study, target_name=label),
    }
    # Values that are all the same have no order and no cause.
    if len(values) >= LEAST_TRIALS and len(set(values)) > 1:
        pictures["parallel.png"] = lambda: draw.plot_parallel_coordinate(study, target_name=label)
        pictures["importance.png"] = lambda: draw.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target_name=label
        )
    for name, picture in pictures.items():
        _save(picture, folder / name)
    return list(pictures)


def _save(picture: Callable[[], Any], path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    with warnings.catch_warnings(), matplotlib.rc_context({"backend": "agg"}):
        warnings.simplefilter("ignore")  # Optuna calls its pictures experimental
        axes = picture()
        figure = np.ravel(axes)[0].figure
        figure.set_size_inches(10, 4.5)
        for drawn in figure.axes:  # the learning rate's ticks would lie over each other
            for axis in (drawn.xaxis, drawn.yaxis):
                axis.set_minor_formatter(NullFormatter())
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight")
        pyplot.close(figure)
