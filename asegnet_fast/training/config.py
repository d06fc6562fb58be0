"""The settings of a cross-validation: one frozen record, checked as a whole, with the paper's recipe as default."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asegnet_fast import paper
from asegnet_fast.errors import InputError
from asegnet_fast.training.augment import Augmentation
from asegnet_fast.training.losses import Loss

MODELS = ("segnet", "a_segnet")
TABLE1_LOSSES = tuple(paper.TABLE1)

CHOICES = {
    "preset": ("vgg16", "matlab64"),
    "block": ("plain", "dense"),
    "join": ("concat", "add"),
    "gate_mode": ("additive", "multiplicative"),
    "split": ("patient", "slice"),
    "precision": ("fp32", "bf16"),
    "backend": ("auto", "reference", "native", "triton"),
    "intensity": ("auto", "hu", "raw"),
    "labels": ("merge", "keep"),
    "select": ("lesion", "all"),
    "tested_epoch": ("last", "best"),
}
# Paths, the device and what is only watched may change when a run is resumed; the rest may not. (Other data or
# groups are noticed by the data's fingerprint.)
NOT_PART_OF_A_RUN = ("data", "groups", "out", "device", "profile", "checkpoint_seconds", "cache")


@dataclass(frozen=True)
class Row:
    """One row of the table: a model trained with a loss."""

    model: str
    loss: Loss

    @property
    def folder(self) -> str:
        """The row's folder in the run, e.g. `a_segnet--ftl-a0.3-b0.7-g1.3333`."""
        return f"{self.model}--{self.loss.folder()}"

    def to_json(self) -> dict[str, Any]:
        """How summary.json names the row."""
        loss = self.loss
        return {
            "model": self.model,
            "loss": loss.kind,
            "alpha": loss.alpha,
            "beta": loss.beta,
            "gamma": loss.gamma,
        }

    def paper(self) -> dict[str, float] | None:
        """What the paper prints for this row, in shares of 1, or None where it has no such row."""
        for text, models in paper.TABLE1.items():
            if self.loss.matches(Loss.parse(text)):
                names = ("dice", "sensitivity", "specificity")
                return {
                    name: round(value / 100, 6) for name, value in zip(names, models[self.model], strict=True)
                }
        return None


@dataclass(frozen=True)
class Settings:
    """Everything that decides a cross-validation; option `--batch-size` is the field `batch_size`, and so on.

    Defaults are the paper's recipe (Budak et al. 2021) where it states one: SGD, learning rate 0.1 halved every
    10 epochs, 50 epochs, batch 16, 256 x 256 pixels, five folds.

    Raises:
        ValueError: a field out of its range; the message names the option, what was expected and what came.
    """

    data: str
    out: str
    models: tuple[str, ...] = MODELS
    losses: tuple[str, ...] = ("ftl:0.3:0.7:4/3",)
    preset: str = "vgg16"
    widths: tuple[int, ...] | None = None
    convs: tuple[int, ...] | None = None
    block: str = "plain"
    growth: int = 16
    decoder_relu: bool = True
    final_relu: bool = True
    join: str = "concat"
    gate_mode: str = "additive"
    split: str = "patient"
    folds: int = 5
    groups: str | None = None
    intensity: str = "auto"
    labels: str = "merge"
    select: str = "lesion"
    cache: str | None = None
    size: int = paper.SIZE
    epochs: int = paper.EPOCHS
    batch_size: int = 16
    lr: float = 0.1
    lr_halve_every: int = 10
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augment: tuple[str, ...] = ()
    inner_validation: float = 0.0
    early_stopping: int = 0
    tested_epoch: str = "last"
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    backend: str = "auto"
    deterministic: bool = True
    checkpoint_seconds: float = 20.0
    profile: bool = False

    def __post_init__(self) -> None:
        for name, options in CHOICES.items():
            _check(name, f"one of {', '.join(options)}", getattr(self, name), getattr(self, name) in options)
        for name in ("data", "out", "groups", "cache"):
            _check(name, "a path", getattr(self, name), getattr(self, name) != "")
        for name, low in (
            ("folds", 2),
            ("growth", 1),
            ("batch_size", 1),
            ("lr_halve_every", 1),
            ("early_stopping", 0),
        ):
            _check(name, f"a whole number >= {low}", getattr(self, name), getattr(self, name) >= low)
        _check("size", "a whole number from 1 to 4096", self.size, 1 <= self.size <= 4096)
        _check("epochs", "a whole number from 1 to 1000000", self.epochs, 1 <= self.epochs <= 1_000_000)
        _check("seed", "a whole number from 0 to 2^32 - 1", self.seed, 0 <= self.seed < 2**32)
        _check("lr", "a number > 0", self.lr, 0 < self.lr < math.inf)
        _check("momentum", "a number from 0 to below 1", self.momentum, 0 <= self.momentum < 1)
        for name in ("weight_decay", "checkpoint_seconds"):
            _check(name, "a number >= 0", getattr(self, name), 0 <= getattr(self, name) < math.inf)
        _check(
            "inner_validation",
            "a share from 0 to 0.5",
            self.inner_validation,
            0 <= self.inner_validation <= 0.5,
        )
        for name, off in (("early_stopping", 0), ("tested_epoch", "last")):
            value = getattr(self, name)
            with_inner = "--inner-validation above 0 beside it"
            _check(name, with_inner, f"{value} alone", value == off or self.inner_validation > 0)
        for name in ("widths", "convs"):
            values = getattr(self, name)
            whole = values is None or (len(values) > 0 and min(values) >= 1)
            _check(name, "whole numbers >= 1, one for each section", values, whole)
        _check(
            "models",
            f"some of {', '.join(MODELS)}",
            self.models,
            self.models and set(self.models) <= set(MODELS),
        )
        _check("losses", "at least one loss", self.losses, len(self.losses) > 0)
        try:
            Augmentation.parse(self.augment)
        except InputError as error:
            raise InputError(f"--augment: {error}") from None
        folders: dict[str, str] = {}
        for model in self.models:
            for text in self.losses:
                folder = Row(model, _loss(text)).folder
                if folder in folders:
                    raise InputError(f"--models, --losses: expected each row once, got {folder} twice")
                folders[folder] = text

    def rows(self) -> list[Row]:
        """The rows of the table, models within losses, in the order given."""
        return [Row(model, _loss(text)) for text in self.losses for model in self.models]

    def network(self, model: str, num_classes: int) -> dict[str, Any]:
        """The keyword arguments that build `model`; kept in its checkpoint."""
        keywords: dict[str, Any] = {"in_channels": 1, "num_classes": num_classes, "preset": self.preset}
        keywords |= {"widths": self.widths, "convs": self.convs, "decoder_relu": self.decoder_relu}
        keywords |= {"final_relu": self.final_relu, "block": self.block, "growth": self.growth}
        if model == "a_segnet":
            keywords |= {"join": self.join, "gate_mode": self.gate_mode}
        return keywords

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def run_key(self) -> dict[str, Any]:
        """The settings that must be the same for a run to be resumed, as JSON values."""
        return {key: value for key, value in self.to_json().items() if key not in NOT_PART_OF_A_RUN}


def read_settings(file: Path | None, options: Mapping[str, Any]) -> Settings:
    """Settings from a YAML file (or none) with command-line options laid over it.

    Args:
        file: YAML mapping with the options' names as keys (`batch-size` or `batch_size`), or None.
        options: field -> value; a None means "not given".

    Raises:
        ValueError: an unreadable file, an unknown key, a wrong type or a value out of range. The message names
            the option and, where the value came from it, the file.
    """
    from_file = _read_yaml(file) if file is not None else {}
    from_options = convert({key: value for key, value in options.items() if value is not None})
    if file is not None:
        placeholder = {"data": ".", "out": "."}
        try:
            Settings(**(placeholder | from_file))
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    values = from_file | from_options
    for name in ("data", "out"):
        if name not in values:
            raise InputError(f"{option(name)}: expected a folder, got nothing")
    return Settings(**values)


def convert(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring text and YAML values to the fields' types.

    Raises:
        ValueError: an unknown name or a value of the wrong type.
    """
    converted: dict[str, Any] = {}
    known = {field.name: str(field.type) for field in dataclasses.fields(Settings)}
    values = dict(values)
    if (table1 := values.pop("table1", False)) not in (True, False):
        raise InputError(f"--table1: expected true or false, got {table1!r}")
    if table1:
        if "losses" in values:
            raise InputError("--table1: expected no --losses beside it, got both")
        values |= {"losses": TABLE1_LOSSES}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{option(name)}: expected one of the known options, got this name")
        converted[name] = _convert(name, known[name], value)
    return converted


def option(name: str) -> str:
    """A field's name as the command line spells it."""
    return "--" + name.replace("_", "-")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' keys, each as `name: OLD there, NEW asked`."""
    return [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} asked"
        for key in dict.fromkeys([*new, *old])
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--config: expected a readable YAML file, got {file} ({reason})") from None
    # yaml's constructors also raise plain errors: a date that is none, lists nested without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: expected YAML, got {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{file}: expected option names with values, got {type(values).__name__}")
    try:
        spelled = [key.replace("-", "_") for key in values]
        if len(set(spelled)) < len(spelled):
            twice = next(name for name in spelled if spelled.count(name) > 1)
            raise InputError(f"{option(twice)}: expected each option once, got it with - and with _")
        return convert({key.replace("-", "_"): value for key, value in values.items() if value is not None})
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _convert(name: str, kind: str, value: Any) -> Any:
    kind = kind.removesuffix(" | None")
    if kind == "tuple[str, ...]" or kind == "tuple[int, ...]":
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        items = [items] if isinstance(items, int) else items
        if not isinstance(items, (list, tuple)):
            raise InputError(f"{option(name)}: expected a list, got {_short(value)}")
        item_kind = kind[len("tuple[") : -len(", ...]")]
        return tuple(_convert(name, item_kind, item) for item in items if item != "")
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, (str, Path)):
        return str(value)
    if kind in ("int", "float") and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 as text, so numbers in text are numbers here.
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if kind == "float" and not math.isnan(number):
            return number
        if kind == "int" and number.is_integer():
            return int(number)
    expected = {"bool": "true or false", "str": "text", "int": "a whole number", "float": "a number"}[kind]
    raise InputError(f"{option(name)}: expected {expected}, got {_short(value)}")


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, int) and value.bit_length() < 100 else ""
    text = text or ("a number of many digits" if isinstance(value, int) else repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _check(name: str, expected: str, value: Any, right: Any) -> None:
    if not right:
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        raise InputError(f"{option(name)}: expected {expected}, got {shown!r}")


def _loss(text: str) -> Loss:
    try:
        return Loss.parse(text)
    except InputError as error:
        raise InputError(f"--losses: {error}") from None
