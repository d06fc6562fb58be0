"""Test slices chosen for the pictures, and what each row's network says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.files import read_json

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one slice.

    labels: int [S, S]. alphas: each gate's coefficients, float [h, w] in 0..1, finest first; () without gates.
    """

    labels: np.ndarray
    alphas: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Cases:
    """Chosen slices and, for each row's folder, the predictions of the folds that tested them.

    A row whose checkpoint is absent or damaged has no entry in `predictions`, and a line in `problems`.
    """

    chosen: np.ndarray
    predictions: dict[str, list[Prediction]]
    problems: list[str]
    checkpoints: list[Path]


def slice_name(slices: SliceSet, index: int) -> str:
    """Where a slice comes from, e.g. `rp_im/4, slice 11`; the end of a long path."""
    source = str(slices.sources[index]).removesuffix(".gz").removesuffix(".nii")
    return f"{source if len(source) <= 20 else '…' + source[-19:]}, slice {slices.indices[index]}"


def lesion_share(slices: SliceSet, index: int) -> float:
    """Share of a slice's pixels that have a label, 0..1."""
    return float((slices.masks[index] > 0).mean())


def spread_slices(slices: SliceSet, candidates: np.ndarray, count: int) -> np.ndarray:
    """Choose slices from small lesions to large ones, of different groups where there are enough.

    Args:
        slices: the data.
        candidates: indices to choose from.
        count: how many are wanted.

    Returns:
        At most `count` indices, by rising lesion share.
    """
    share = (slices.masks[candidates] > 0).mean((1, 2))
    ordered = candidates[np.argsort(share, kind="stable")]
    ordered = ordered[np.sort(share) > 0] if (share > 0).any() else ordered
    chosen: list[int] = []
    used: set[Any] = set()
    for quantile in np.linspace(0.15, 0.97, min(count, len(ordered))):
        wanted = quantile * (len(ordered) - 1)
        places = sorted(
            (i for i in range(len(ordered)) if int(ordered[i]) not in chosen), key=lambda i: abs(i - wanted)
        )
        fresh = [i for i in places[: max(1, len(ordered) // 4)] if slices.groups[ordered[i]] not in used]
        index = int(ordered[(fresh or places)[0]])
        chosen.append(index)
        used.add(slices.groups[index])
    return np.array(sorted(chosen, key=lambda i: lesion_share(slices, i)), dtype=np.int64)


#: Which file holds the network that a run tested.
CHECKPOINTS = {"last": "checkpoint_last.pt", "best": "checkpoint_best.pt"}


def choose_cases(run: Path, summary: dict[str, Any], slices: SliceSet, count: int = 4) -> Cases:
    """Choose test slices that every row has been tested on, and predict them with each row's network.

    Args:
        run: the folder of a run.
        summary: the content of its summary.json.
        slices: the data it was made on.
        count: how many slices are wanted; there may be fewer, also none.
    """
    rows = summary["rows"]
    fold_of: dict[int, int] = {}
    for fold in range(summary["folds"]):
        files = [run / row["folder"] / f"fold{fold}" / "metrics.json" for row in rows]
        if all(file.exists() for file in files):
            fold_of |= dict.fromkeys(read_json(files[0])["test_indices"], fold)
    candidates = np.array(sorted(fold_of), dtype=np.int64)
    chosen = spread_slices(slices, candidates, count) if len(candidates) else candidates
    predictions: dict[str, list[Prediction]] = {}
    problems: list[str] = []
    checkpoints: list[Path] = []
    for row in rows if len(chosen) else []:
        try:
            predictions[row["folder"]], read = _predict(
                run / row["folder"], CHECKPOINTS[summary["tested_epoch"]], slices, chosen, fold_of
            )
            checkpoints += read
        except InputError as error:
            problems.append(str(error))
    return Cases(chosen, predictions, problems, checkpoints)


def _predict(
    row: Path, name: str, slices: SliceSet, chosen: Sequence[int], fold_of: dict[int, int]
) -> tuple[list[Prediction], list[Path]]:
    """What the row's networks say about the chosen slices, each by the fold that tested it; on the CPU, in fp32."""
    import torch

    from asegnet_fast.checkpoint import load_network, normalised, read_checkpoint

    found: dict[int, Prediction] = {}
    read = []
    for fold in sorted({fold_of[int(i)] for i in chosen}):
        path = row / f"fold{fold}" / name
        content = read_checkpoint(path)
        if content.get("identity") != read_json(path.parent / "metrics.json").get("identity"):
            raise InputError(f"{path}: expected this fold's, got another one's")
        network = load_network(content)
        gated = content["model"] == "a_segnet"
        for index in (int(i) for i in chosen if fold_of[int(i)] == fold):
            image = normalised(
                torch.from_numpy(slices.images[index : index + 1].copy()), content["normalisation"]
            )
            with torch.inference_mode():
                logits, alphas = network(image, return_attention=True) if gated else (network(image), [])
            found[index] = Prediction(
                logits.argmax(1)[0].numpy(), tuple(alpha[0, 0].float().numpy() for alpha in alphas)
            )
        read.append(path)
    return [found[int(index)] for index in chosen], read
