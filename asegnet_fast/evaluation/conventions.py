"""What a measure is where a mask is empty: stated, selectable, and written beside every number.

There is no common rule in the field, and means over cases depend on it. A convention has up to two parts:
`both` for an empty truth predicted empty (more exactly, for a ratio 0/0), and `one` where only one mask is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.overlap import MEASURES
from asegnet_fast.evaluation.surface import SurfaceDistances

DISTANCES = SurfaceDistances._fields
#: The one end of a distance that depends on the image.
DIAGONAL = "diagonal"
_WORDS = {"nan": math.nan, "zero": 0.0, "one": 1.0, "inf": math.inf}
_RATIO, _MM = ("nan", "zero", "one"), ("nan", "zero", "inf", DIAGONAL)

# Measure -> the words that may stand for `both` and for `one`. Where Dice or IoU meets an empty truth and a
# prediction that is not, 0 is what the formula gives; `nan` leaves such images out.
_ALLOWED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dice": (_RATIO, ("nan", "zero")),
    "iou": (_RATIO, ("nan", "zero")),
    "sensitivity": (_RATIO, ()),
    "specificity": (_RATIO, ()),
    "precision": (_RATIO, ()),
    "hd95": (_MM, _MM),
    "assd": (_MM, _MM),
    "surface_dice": (_RATIO, ("nan", "zero")),
}
_DEFAULT = {
    "dice": ("one", "zero"),
    "iou": ("one", "zero"),
    "sensitivity": ("nan",),
    "specificity": ("nan",),
    "precision": ("nan",),
    "hd95": ("nan", DIAGONAL),
    "assd": ("nan", DIAGONAL),
    "surface_dice": ("nan", "zero"),
}
#: Other tools' conventions, as changes of the default.
PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "default": {},
    # nnunetv2.evaluation divides 0 by 0 and takes nanmean.
    "nnunet": {"dice": ("nan", "zero"), "iou": ("nan", "zero")},
    # DiceMetric, MeanIoU with ignore_empty=True; HausdorffDistanceMetric, SurfaceDistanceMetric(symmetric=True).
    "monai": {"dice": ("nan", "nan"), "iou": ("nan", "nan"), "hd95": ("nan", "nan"), "assd": ("nan", "inf")},
    # The BraTS challenges: two empty masks agree, a missed or invented lesion costs 374 mm.
    "brats": {"hd95": ("zero", "374"), "assd": ("zero", "374")},
}


@dataclass(frozen=True)
class Conventions:
    """The conventions of one evaluation.

    Attributes:
        words: measure -> its words, `both` and where there is one `one`; see `Conventions.parse`.
    """

    words: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(_DEFAULT))

    @classmethod
    def parse(cls, text: str) -> Conventions:
        """Read a specification such as `nnunet,hd95=nan/inf`.

        Items are separated by commas, later ones win. An item is a preset (`default`, `nnunet`, `monai`, `brats`)
        or MEASURE=BOTH or MEASURE=BOTH/ONE: of dice, iou, sensitivity, specificity, precision, surface_dice
        `nan` (left out of means), `zero` or `one`; of hd95 and assd `nan`, `zero`, `inf`, `diagonal` (the
        image's, in millimetres) or a number of millimetres.

        Raises:
            ValueError: an unknown item.
        """
        words = dict(_DEFAULT)
        for item in (part.strip() for part in text.split(",")):
            name, equals, value = (part.strip() for part in item.partition("="))
            if not equals and name in PRESETS:
                words |= {**_DEFAULT, **PRESETS[name]}
                continue
            name = name.replace("-", "_")
            if not equals or name not in _ALLOWED:
                raise InputError(
                    f"--empty: expected {', '.join(PRESETS)} or MEASURE=VALUE with a measure of "
                    f"{', '.join(_ALLOWED)}, got {item!r}"
                )
            given = tuple(part.strip() for part in value.split("/"))
            allowed = [part for part in _ALLOWED[name] if part]
            for i, word in enumerate(given):
                if i >= len(allowed) or not _is_word(word, allowed[i]):
                    spelled = "/".join("|".join(part) for part in allowed)
                    number = " or millimetres" if DIAGONAL in allowed[0] else ""
                    raise InputError(f"--empty: expected {name}={spelled}{number}, got {item!r}")
            words[name] = given + words[name][len(given) :]
        return cls(words)

    def overlap(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """The measure as a function of counts [..., 4] alone, with its convention in it."""
        measure, words = MEASURES[name], self.words[name]
        both = _WORDS[words[0]]
        if len(words) < 2 or words[1] == "zero":
            return lambda counts: measure(counts, empty=both)

        def leaving_out(counts: np.ndarray) -> np.ndarray:
            truth, predicted = _sizes(counts)
            return np.where((truth == 0) & (predicted > 0), np.nan, measure(counts, empty=both))

        return leaving_out

    def distance(
        self, name: str, values: np.ndarray, counts: np.ndarray, diagonal: float | np.ndarray
    ) -> np.ndarray:
        """Distances with the convention put in where a mask is empty.

        Args:
            name: hd95, assd or surface_dice.
            values: float [...], as measured.
            counts: [..., 4] of the same masks.
            diagonal: of the image, in millimetres; broadcasts to `values`.

        Returns:
            float64 [...].
        """
        truth, predicted = _sizes(counts)
        both, one = (_number(word, diagonal) for word in self.words[name])
        neither = (truth == 0) & (predicted == 0)
        return np.where(neither, both, np.where((truth == 0) | (predicted == 0), one, values))

    def to_json(self) -> dict[str, str]:
        """Each measure's convention as `parse` reads it: `{"dice": "one/zero", ...}`."""
        return {name: "/".join(words) for name, words in self.words.items()}

    def sentences(self, distances: bool) -> list[str]:
        """The conventions in words, for the foot of a table.

        Args:
            distances: whether the table has distances.
        """
        lines = []
        for name, words in self.words.items():
            if name in DISTANCES and not distances:
                continue
            if len(words) == 1:
                lines.append(f"{name} {_spelled(words[0])} where it is 0/0")
            else:
                lines.append(
                    f"{name} {_spelled(words[0])} where both masks are empty, {_spelled(words[1])} where "
                    + ("only the truth is" if name in MEASURES else "only one is")
                )
        return lines


def _sizes(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tp, fp, fn, _ = np.moveaxis(np.asarray(counts), -1, 0)
    return tp + fn, tp + fp


def _is_word(word: str, allowed: tuple[str, ...]) -> bool:
    return word in allowed or (DIAGONAL in allowed and 0 <= _millimetres(word) < math.inf)


def _millimetres(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _number(word: str, diagonal: float | np.ndarray) -> float | np.ndarray:
    if word == DIAGONAL:
        return diagonal
    return _WORDS[word] if word in _WORDS else _millimetres(word)


def _spelled(word: str) -> str:
    spelled = {
        "nan": "left out",
        "zero": "0",
        "one": "1",
        "inf": "infinite",
        DIAGONAL: "the image's diagonal",
    }
    return spelled.get(word, f"{word} mm")
