"""Random changes of training slices: flips, small affine maps, intensities; whole batches at once, on their device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from asegnet_fast.errors import InputError


class Change(NamedTuple):
    """A kind of change: its usual amount, the largest, and what the amount says."""

    amount: float
    largest: float
    meaning: str


#: Every slice gets every change that is asked for, by an amount drawn evenly from 0 to the given one, either way.
CHANGES = {
    "flip-lr": Change(0.5, 1.0, "chance to swap left and right"),
    "flip-ud": Change(0.5, 1.0, "chance to swap top and bottom"),
    "rotate": Change(10.0, 180.0, "degrees about the centre"),
    "scale": Change(0.1, 1.0, "share by which it grows, or shrinks in turn"),
    "shift": Change(0.05, 0.5, "share of the side, along both axes"),
    "gamma": Change(0.2, 4.0, "exponent from 1 / (1 + amount) to 1 + amount"),
    "gain": Change(0.1, 0.99, "factor 1 - amount to 1 + amount"),
    "offset": Change(0.05, 1.0, "added, in shares of the range"),
    "noise": Change(0.02, 1.0, "standard deviation 0 to amount, in shares of the range"),
}
GROUPS = {
    "flips": ("flip-lr", "flip-ud"),
    "affine": ("rotate", "scale", "shift"),
    "intensity": ("gamma", "gain", "offset", "noise"),
}
SPELLING = f"{', '.join(GROUPS)}, or NAME or NAME:AMOUNT of {', '.join(CHANGES)}"


@dataclass(frozen=True)
class Augmentation:
    """The changes asked for: name -> amount, as `CHANGES` explains them."""

    amounts: dict[str, float]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Augmentation | None:
        """Read changes as the command line spells them, e.g. `flips`, `affine`, `rotate:20`; a later one wins.

        Returns:
            The changes, or None where there is none.

        Raises:
            ValueError: an unknown name or an amount out of range.
        """
        amounts: dict[str, float] = {}
        for text in texts:
            name, colon, number = text.strip().partition(":")
            if name in GROUPS and not colon:
                amounts |= {member: CHANGES[member].amount for member in GROUPS[name]}
                continue
            if name not in CHANGES:
                raise InputError(f"expected {SPELLING}, got {text!r}")
            change = CHANGES[name]
            try:
                amount = float(number) if colon else change.amount
            except ValueError:
                amount = math.nan
            if not 0 <= amount <= change.largest:
                raise InputError(
                    f"expected 0 to {change.largest:g} for {name} ({change.meaning}), got {number!r} in {text!r}"
                )
            amounts[name] = amount
        amounts = {name: amount for name, amount in amounts.items() if amount > 0}
        return cls(amounts) if amounts else None

    def __call__(
        self, images: Tensor, masks: Tensor, generator: torch.Generator, part: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Change slices and their masks alike; what moves in from outside is 0, the darkest grey and the background.

        Args:
            images: uint8 [N, S, S].
            masks: uint8 [N, S, S]; moved to the nearest pixel, so that labels stay labels.
            generator: source of the random numbers, on the images' device.
            part: (first, all): the slices are those from `first` on of a batch of `all`. The random numbers are drawn
                for the whole batch, so that processes that share it change it as one would. None: they are the batch.

        Returns:
            (float32 [N, S, S] in 0..255, uint8 [N, S, S]).
        """
        first, total = part or (0, len(images))
        mine = slice(first, first + len(images))
        device = images.device
        drawn = torch.rand(total, len(CHANGES), generator=generator, device=device)[mine]
        draw = dict(zip(CHANGES, drawn[:, :, None, None].unbind(1), strict=True))
        images = images.float().div_(255)
        for name, axis in (("flip-lr", -1), ("flip-ud", -2)):
            if name in self.amounts:
                chosen = draw[name] < self.amounts[name]
                images, masks = (torch.where(chosen, maps.flip(axis), maps) for maps in (images, masks))
        if not self.amounts.keys().isdisjoint(GROUPS["affine"]):
            images, masks = self._moved(images, masks, draw, generator, total, mine)
        if "gamma" in self.amounts:
            images = images.pow(self._factor("gamma", draw))
        if "gain" in self.amounts:
            images = images * (1 + self._either_way("gain", draw))
        if "offset" in self.amounts:
            images = images + self._either_way("offset", draw)
        if "noise" in self.amounts:
            noise = torch.randn(total, *images.shape[1:], generator=generator, device=device)[mine]
            images = images + self.amounts["noise"] * draw["noise"] * noise
        return images.clamp(0, 1).mul_(255), masks

    def _either_way(self, name: str, draw: dict[str, Tensor]) -> Tensor:
        """-amount..amount for each slice, [N, 1, 1]; 0 where the change is not asked for."""
        return self.amounts.get(name, 0.0) * (2 * draw[name] - 1)

    def _factor(self, name: str, draw: dict[str, Tensor]) -> Tensor:
        """1 / (1 + amount) .. 1 + amount for each slice, as often below 1 as above."""
        return (math.log1p(self.amounts.get(name, 0.0)) * (2 * draw[name] - 1)).exp()

    def _moved(
        self,
        images: Tensor,
        masks: Tensor,
        draw: dict[str, Tensor],
        generator: torch.Generator,
        total: int,
        mine: slice,
    ) -> tuple[Tensor, Tensor]:
        """Slices and masks rotated and scaled about the centre, then shifted."""
        angle = torch.deg2rad(self._either_way("rotate", draw)).reshape(-1)
        smaller = 1 / self._factor("scale", draw).reshape(-1)
        # Where a pixel comes from; coordinates run from -1 to 1, so that a share of the side is twice as much.
        cos, sin = angle.cos() * smaller, angle.sin() * smaller
        shifts = 2 * torch.rand(total, 2, generator=generator, device=images.device)[mine] - 1
        shifts = 2 * self.amounts.get("shift", 0.0) * shifts
        origin = torch.stack([cos, -sin, shifts[:, 0], sin, cos, shifts[:, 1]], 1).reshape(-1, 2, 3)
        grid = F.affine_grid(origin, [len(images), 1, *images.shape[1:]], align_corners=False)
        images = F.grid_sample(images[:, None], grid, "bilinear", "zeros", align_corners=False)[:, 0]
        moved = F.grid_sample(masks[:, None].float(), grid, "nearest", "zeros", align_corners=False)[:, 0]
        return images, moved.to(masks.dtype)
