"""One or several checkpoints as one predictor of slices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asegnet_fast.checkpoint import autocast, load_network, normalised, read_checkpoint
from asegnet_fast.data.intensity import INTENSITIES
from asegnet_fast.errors import InputError
from asegnet_fast.files import sha256_of

LAST = "checkpoint_last.pt"
# What the members of an ensemble must share, and how messages call it.
_SHARED = {
    "size": "slices of {} pixels",
    "intensity": "intensity {}",
    "values": "the classes {}",
}


class Prediction(NamedTuple):
    """What the networks say of one slice, at its own size.

    labels: uint8 [rows, columns], classes 0, 1, ...; probabilities: float32 [classes, rows, columns];
    attention: float32 [gates, rows, columns], finest gate first.
    """

    labels: Tensor
    probabilities: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Member:
    """A checkpoint of an ensemble.

    Attributes:
        path, sha256: the file.
        model: `segnet` or `a_segnet`.
        row, fold: what it was in its run, None where it was none.
        epoch, epochs: how long it was trained, and how long it should have been.
        size: side in pixels of the slices that it takes.
        intensity: how values became grey levels in training.
        values: what the mask holds for class 1, 2, ...
        normalisation: {"mean", "sd"} of the training slices.
        network: in evaluation mode.
    """

    path: Path
    sha256: str
    model: str
    row: str | None
    fold: int | None
    epoch: int
    epochs: int | None
    size: int
    intensity: str
    values: tuple[int, ...]
    normalisation: dict[str, float]
    network: nn.Module

    @property
    def gates(self) -> int:
        """How many attention gates its network has."""
        return len(getattr(self.network, "gates", ()))

    def to_json(self) -> dict[str, Any]:
        """How the report names it."""
        names = ("model", "row", "fold", "epoch", "epochs", "sha256")
        return {"file": str(self.path), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Ensemble:
    """Checkpoints that take the same slices and know the same classes; the mean of their probabilities decides."""

    members: tuple[Member, ...]
    device: torch.device
    precision: str

    @property
    def size(self) -> int:
        """Side in pixels of the slices that the networks take."""
        return self.members[0].size

    @property
    def intensity(self) -> str:
        """How values become grey levels."""
        return self.members[0].intensity

    @property
    def values(self) -> tuple[int, ...]:
        """What the mask holds for class 1, 2, ..."""
        return self.members[0].values

    @property
    def gates(self) -> int:
        """How many attention gates each network has; 0 where they have none or unlike numbers of them."""
        numbers = {member.gates for member in self.members}
        return numbers.pop() if len(numbers) == 1 else 0

    def __call__(self, images: np.ndarray, shape: tuple[int, int], attention: bool) -> Iterator[Prediction]:
        """Predicts slices.

        The probabilities are brought to the slices' own size and the labels chosen there: an argmax at the network's
        size, enlarged, would have its pixels as steps along every edge.

        Args:
            images: uint8 [n, size, size], 0..255.
            shape: (rows, columns) of the slices before they were resized.
            attention: whether the gates' coefficients are wanted.

        Returns:
            One prediction a slice, on the device.
        """
        maps = self._maps(torch.from_numpy(images).to(self.device), attention)
        for k in range(len(images)):
            yield self._prediction([part[k] for part in maps], shape)

    # The mode ends before a slice is handed out: left on in a generator, it would be on for whoever takes the slice.
    @torch.inference_mode()
    def _prediction(self, maps: list[Tensor], shape: tuple[int, int]) -> Prediction:
        """Of one slice, from its maps at the network's size."""
        probabilities, *alphas = (_resized(part, shape) for part in maps)
        attention = torch.cat(alphas) if alphas else probabilities.new_empty(0, *shape)
        return Prediction(_most_probable(probabilities), probabilities, attention)

    @torch.inference_mode()
    def _maps(self, batch: Tensor, attention: bool) -> list[Tensor]:
        """Means over the members: probabilities [n, classes, size, size], then each gate's [n, 1, H_k, W_k]."""
        sums: list[Tensor] = []
        for member in self.members:
            with autocast(self.device, self.precision):
                inputs = normalised(batch, member.normalisation).contiguous(memory_format=torch.channels_last)
                out = (
                    member.network(inputs, return_attention=True)
                    if attention
                    else (member.network(inputs), [])
                )
            logits, alphas = out
            maps = [logits.float().softmax(1), *(alpha.float() for alpha in alphas)]
            sums = [a + b for a, b in zip(sums, maps, strict=True)] if sums else maps
        return [total / len(self.members) for total in sums]


def load_ensemble(places: Sequence[Path], device: str = "cpu", precision: str = "fp32") -> Ensemble:
    """Reads checkpoints that belong together.

    Args:
        places: checkpoint files; folders with a `checkpoint_last.pt`; or row folders of a cross-validation
            (`RUN/a_segnet--dl`), which stand for the last checkpoints of all their folds.
        device: where the networks are put.
        precision: `fp32` or `bf16`.

    Raises:
        ValueError: no, a damaged or another program's checkpoint, a row with folds missing, the same checkpoint twice,
            or checkpoints that do not fit together; the message names the file.
    """
    if not places:
        raise InputError("--checkpoint: expected at least one checkpoint, got none")
    members: list[Member] = []
    for place in places:
        for path in _files_of(Path(place)):
            members.append(_load_member(path, torch.device(device)))
            _check_fits(members)
    return Ensemble(tuple(members), torch.device(device), precision)


def _files_of(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    if (place / LAST).is_file():
        return [place / LAST]
    folds = {
        int(match[1]): p / LAST for p in place.iterdir() if (match := re.fullmatch(r"fold(\d+)", p.name))
    }
    if not folds:
        rows = sorted(p.name for p in place.iterdir() if any(p.glob(f"fold*/{LAST}")))
        got = f"a whole run; name one of its rows: {', '.join(rows)}" if rows else "none in this folder"
        raise InputError(f"{place}: expected {LAST} or a row's fold0, fold1, ..., got {got}")
    settings = read_checkpoint(folds[min(folds)]).get("settings")
    wanted = settings.get("folds") if isinstance(settings, dict) else None
    missing = [
        k for k in range(wanted if isinstance(wanted, int) else 0) if k not in folds or not folds[k].is_file()
    ]
    if missing:
        raise InputError(
            f"{place}: expected the checkpoints of {wanted} folds, got none of fold "
            f"{', '.join(map(str, missing[:9]))} (name files to use fewer)"
        )
    return [folds[k] for k in sorted(folds)]


def _load_member(path: Path, device: torch.device) -> Member:
    content = read_checkpoint(path)

    def need(condition: bool, expected: str, got: object) -> None:
        if not condition:
            raise InputError(f"{path}: expected {expected}, got {got!r:.80}")

    settings = content.get("settings")
    need(isinstance(settings, dict), "the settings of its training", settings)
    size, intensity = settings.get("size"), settings.get("intensity")
    known = isinstance(size, int) and 1 <= size <= 4096 and intensity in INTENSITIES
    need(known, "settings with a size and an intensity", (size, intensity))
    normalisation = content["normalisation"]
    try:
        whole = math.isfinite(normalisation["mean"]) and 0 < normalisation["sd"] < math.inf
    except (KeyError, TypeError):
        whole = False
    need(whole, "mean and deviation of the training slices", normalisation)
    need(isinstance(content["epoch"], int), "a number of epochs", content["epoch"])
    network = load_network(content, str(path))
    least = 2 ** len(network.encoders)
    need(size >= least, f"slices of at least {least} pixels", size)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
    need(finite, "finite weights", "NaN or infinity among them")
    count = content["network"].get("num_classes", 2) - 1
    values = content.get("label_values") if settings.get("labels") == "keep" else None
    values = range(1, count + 1) if values is None else values
    whole = len(values) == count > 0 and all(isinstance(value, int) and 0 < value < 2**31 for value in values)
    need(whole, "whole numbers as labels, one for each class", values)
    identity = content.get("identity") if isinstance(content.get("identity"), dict) else {}
    return Member(
        path=path,
        sha256=sha256_of(path),
        model=content["model"],
        row=identity.get("row"),
        fold=identity.get("fold"),
        epoch=content["epoch"],
        epochs=settings.get("epochs"),
        size=size,
        intensity=intensity,
        values=tuple(values),
        normalisation=normalisation,
        network=network.to(device),
    )


def _check_fits(members: Sequence[Member]) -> None:
    """The last member belongs to those before it."""
    first, last = members[0], members[-1]
    for other in members[:-1]:
        if other.sha256 == last.sha256:
            raise InputError(f"{last.path}: expected each checkpoint once, got the same as {other.path}")
    for name, told in _SHARED.items():
        wanted, got = getattr(first, name), getattr(last, name)
        if wanted != got:
            raise InputError(
                f"{last.path}: expected {told.format(wanted)} as {first.path} has, got {told.format(got)}"
            )


def _resized(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """[C, H, W] to [C, *shape], float32; antialiased where that is smaller."""
    return F.interpolate(maps[None], shape, mode="bilinear", align_corners=False, antialias=True)[0]


def _most_probable(probabilities: Tensor) -> Tensor:
    """`probabilities.argmax(0)` of [classes, rows, columns] as uint8, the first of equals.

    torch's argmax over the first axis is far slower on a CPU than everything else that is done to a slice here.
    """
    best, labels = probabilities[0], torch.zeros_like(probabilities[0], dtype=torch.uint8)
    for label, probability in enumerate(probabilities[1:], 1):
        labels.masked_fill_(probability > best, label)
        best = torch.maximum(best, probability)
    return labels
