"""How a loss is spelled on the command line, named in a folder, and computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from asegnet_fast.errors import InputError

if TYPE_CHECKING:
    from torch import nn

# Kind -> the parameters that follow it after colons.
PARAMETERS = {
    "ce": (),
    "dl": (),
    "dl-literal": (),
    "gdl": (),
    "tl": ("alpha", "beta"),
    "ftl": ("alpha", "beta", "gamma"),
}
SPELLING = "ce, dl, dl-literal, gdl, tl:ALPHA:BETA or ftl:ALPHA:BETA:GAMMA"


@dataclass(frozen=True)
class Loss:
    """One loss: its kind and, for the Tversky losses, alpha (false positives), beta (false negatives), gamma."""

    kind: str
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None

    @classmethod
    def parse(cls, text: str) -> Loss:
        """Read a loss as the command line spells it, e.g. `ftl:0.3:0.7:4/3`.

        Raises:
            ValueError: an unknown kind, a wrong number of parameters, or a parameter out of range.
        """
        kind, *given = text.strip().split(":")
        if kind not in PARAMETERS or len(given) != len(PARAMETERS[kind]):
            raise InputError(f"expected {SPELLING}, got {text!r}")
        values = {}
        for name, number in zip(PARAMETERS[kind], given, strict=True):
            try:
                # Fraction alone would spend minutes on 1e999999999.
                values[name] = float(Fraction(number)) if "/" in number else float(number)
                if not math.isfinite(values[name]):
                    raise ValueError
            except (ValueError, ZeroDivisionError, OverflowError):
                raise InputError(
                    f"expected a number or a fraction for {name}, got {number!r} in {text!r}"
                ) from None
        for name in ("alpha", "beta"):
            if values.get(name, 0.0) < 0:
                raise InputError(f"expected {name} >= 0, got {values[name]:g} in {text!r}")
        if values and values["alpha"] + values["beta"] == 0:
            raise InputError(f"expected alpha + beta > 0, got 0 in {text!r}")
        if not 1 <= values.get("gamma", 1.0) <= 3:
            raise InputError(f"expected gamma from 1 to 3, got {values['gamma']:g} in {text!r}")
        return cls(kind, **values)

    def folder(self) -> str:
        """The part of a row's folder name that stands for this loss, e.g. `ftl-a0.3-b0.7-g1.3333`."""
        names = PARAMETERS[self.kind]
        return "-".join([self.kind, *(f"{name[0]}{getattr(self, name):.5g}" for name in names)])

    def matches(self, other: Loss) -> bool:
        """Whether both are the same loss, up to the rounding of a parameter's decimals."""
        return self.kind == other.kind and all(
            math.isclose(getattr(self, name), getattr(other, name), rel_tol=1e-3)
            for name in PARAMETERS[self.kind]
        )

    def function(self) -> nn.Module:
        """The loss as a module of logits [N, C, H, W] and integer labels [N, H, W]."""
        from asegnet_fast import nn

        if self.kind == "ce":
            return nn.CrossEntropyLoss()
        if self.kind == "gdl":
            return nn.GeneralizedDiceLoss()
        if self.kind in ("dl", "dl-literal"):
            return nn.DiceLoss(variant="soft" if self.kind == "dl" else "literal")
        if self.kind == "tl":
            return nn.TverskyLoss(self.alpha, self.beta)
        return nn.FocalTverskyLoss(self.alpha, self.beta, self.gamma)
