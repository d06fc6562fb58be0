"""Checkpoints with random weights, and predictions with them, for the tests of `predict`."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from asegnet_fast.checkpoint import build_network, write_checkpoint
from asegnet_fast.data import write_volume
from asegnet_fast.inference import Ensemble, find_volumes, load_ensemble, plan_outputs, predict_volume
from tests.data_sets import SANE

NETWORK = {"widths": (4, 8), "convs": (1, 1)}


def checkpoint(
    path: Path,
    seed: int = 0,
    model: str = "a_segnet",
    classes: int = 2,
    content: dict | None = None,
    **settings: Any,
) -> Path:
    """Writes a checkpoint of random weights; `content` goes over its content and `settings` over its settings."""
    torch.manual_seed(seed)
    network = {"in_channels": 1, "num_classes": classes, **NETWORK}
    whole = {
        "model": model,
        "network": network,
        "state_dict": build_network(model, network).state_dict(),
        "normalisation": {"mean": 100.0, "sd": 60.0},
        "epoch": 3,
        "settings": {"size": 32, "intensity": "auto", "labels": "merge", "epochs": 3} | settings,
    }
    write_checkpoint(path, whole | (content or {}))
    return path


def smooth_volume(shape: tuple[int, int, int] = (40, 36, 6), seed: int = 0) -> np.ndarray:
    """int16 HU in noisy blobs, unlike along every axis.

    Without the noise a max-pool would choose between equal values, and rounding decide where it unpools them.
    """
    rng = np.random.default_rng(seed)
    blocks = [n if n < 8 else n // 4 for n in shape]
    coarse = rng.integers(-1000, 400, blocks)
    grid = [np.arange(n) * b // n for n, b in zip(shape, blocks, strict=True)]
    return (coarse[np.ix_(*grid)] + rng.integers(-40, 41, shape)).astype(np.int16)


def volume(path: Path, affine: np.ndarray = SANE, shape=(40, 36, 6), seed: int = 0) -> Path:
    """Writes a blobby CT."""
    write_volume(path, smooth_volume(shape, seed), affine)
    return path


def predict(
    ensemble: Ensemble, image: Path, out: Path, lung: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Predicts one volume with everything that can be wanted but the picture; returns the report."""
    (job,) = find_volumes(image, lung)
    batch_size = options.pop("batch_size", 4)
    (outputs,) = plan_outputs([job], out, ensemble, **({"probabilities": True} | options))
    return predict_volume(ensemble, job, outputs, batch_size)


def values(path: Path) -> np.ndarray:
    """The stored values of a NIfTI file."""
    return np.asarray(nibabel.load(path).dataobj)


def one(folder: Path, **changes: Any) -> Ensemble:
    """An ensemble of one random checkpoint."""
    return load_ensemble([checkpoint(folder / "net.pt", **changes)])
