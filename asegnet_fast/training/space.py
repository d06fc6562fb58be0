"""The ranges of a search, and a point in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from asegnet_fast.errors import InputError

if TYPE_CHECKING:
    import optuna

#: The paper's best loss and its learning rate: the first point that a search tries.
PAPER = {"alpha": 0.3, "beta": 0.7, "gamma": 4 / 3, "lr": 0.1}
#: The numbers that each parameter may take.
LIMITS = {"alpha": (0.0, 1e3), "beta": (0.0, 1e3), "gamma": (1.0, 3.0), "lr": (1e-8, 1e3)}
DEFAULTS = {"alpha": "0.1:0.9", "beta": "1-alpha", "gamma": "1:3", "lr": "0.01:0.3"}
DIGITS = 4


@dataclass(frozen=True)
class Range:
    """From low to high, both included; a single number where they are equal."""

    low: float
    high: float

    @classmethod
    def parse(cls, name: str, text: str) -> Range:
        """Read `LOW:HIGH` or one number, decimal or a fraction.

        Raises:
            ValueError: not numbers, in the wrong order, or outside `LIMITS`; the message names the option.
        """
        least, most = LIMITS[name]
        try:
            ends = [float(Fraction(part)) if "/" in part else float(part) for part in text.split(":")]
            right = len(ends) in (1, 2) and least <= ends[0] <= ends[-1] <= most
        except (ValueError, ZeroDivisionError, OverflowError):
            right = False
        if not right:
            raise InputError(
                f"--{name}: expected LOW:HIGH or a number, from {least:g} to {most:g}, got {text!r}"
            )
        return cls(ends[0], ends[-1])

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Point:
    """What a trial trains with; loss as the command line spells it."""

    alpha: float
    beta: float
    gamma: float
    lr: float

    @property
    def loss(self) -> str:
        return f"ftl:{_text(self.alpha)}:{_text(self.beta)}:{_text(self.gamma)}"


def _text(value: float) -> str:
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Space:
    """The ranges of the focal Tversky loss's parameters and of the learning rate; beta None stands for 1 - alpha."""

    alpha: Range
    beta: Range | None
    gamma: Range
    lr: Range

    @classmethod
    def parse(cls, alpha: str, beta: str, gamma: str, lr: str) -> Space:
        """Read the four options.

        Raises:
            ValueError: a range that cannot be used; the message names the option.
        """
        tied = beta.replace(" ", "") == DEFAULTS["beta"]
        space = cls(
            Range.parse("alpha", alpha),
            None if tied else Range.parse("beta", beta),
            Range.parse("gamma", gamma),
            Range.parse("lr", lr),
        )
        if tied and space.alpha.high > 1:
            raise InputError(f"--alpha: expected at most 1, because beta is 1 - alpha, got {alpha!r}")
        if space.alpha.low == 0 and not tied and space.beta.low == 0:
            raise InputError("--alpha, --beta: expected one of them above 0, got ranges from 0")
        return space

    def to_json(self) -> dict[str, str]:
        """The options that make this space."""
        return {name: str(found) if found else DEFAULTS["beta"] for name, found in vars(self).items()}

    def paper_point(self) -> dict[str, float] | None:
        """The paper's point in the parameters that are searched, or None where the ranges leave it out."""
        searched = {name: found for name, found in vars(self).items() if found and found.low < found.high}
        if not searched or any(
            not found.low <= PAPER[name] <= found.high for name, found in searched.items()
        ):
            return None
        return {name: PAPER[name] for name in searched}

    def suggest(self, trial: optuna.Trial) -> Point:
        """The point that Optuna wants to try, its numbers rounded to what a command line can spell."""

        def one(name: str, found: Range) -> float:
            if found.low == found.high:
                return found.low
            return trial.suggest_float(name, found.low, found.high, log=name == "lr")

        alpha = round(one("alpha", self.alpha), DIGITS)
        beta = round(1 - alpha, DIGITS) if self.beta is None else round(one("beta", self.beta), DIGITS)
        gamma = round(one("gamma", self.gamma), DIGITS)
        lr = one("lr", self.lr)
        return Point(alpha, beta, gamma, round(lr, DIGITS - 1 - math.floor(math.log10(lr))))
