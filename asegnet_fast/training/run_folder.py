"""The folder of a run: its config.json, and that nothing but this very run is written into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asegnet_fast.environment import choose_device, environment
from asegnet_fast.errors import InputError
from asegnet_fast.files import check_writable, is_temporary, read_json, remove_leftovers
from asegnet_fast.training.config import Settings, convert, differences

if TYPE_CHECKING:
    from asegnet_fast.data import SliceSet


def run_config(settings: Settings, slices: SliceSet, leak_percent: float) -> dict[str, Any]:
    """The content of config.json: settings, data and what it runs on."""
    return {
        "settings": settings.to_json(),
        "data": {
            "fingerprint": slices.fingerprint,
            "slices": len(slices.images),
            "num_classes": slices.num_classes,
            "label_values": [int(value) for value in slices.label_values],
            "notes": list(slices.notes),
            "leak_percent": leak_percent,
        },
        "environment": environment(choose_device(settings.device)),
    }


def read_run(run: Path, kind: str = "crossval") -> tuple[Settings, dict[str, Any]]:
    """The settings of the run in a folder, and its whole config.json.

    Args:
        run: the folder.
        kind: the command that made it, `crossval` or `train`.

    Raises:
        ValueError: the folder holds no run, or a damaged one.
    """
    if not (Path(run) / "config.json").is_file():
        raise InputError(f"{run}: expected a folder with a run (config.json), got none")
    file = Path(run) / "config.json"
    config = read_json(file)
    if (found := config.get("kind", "crossval")) != kind:
        raise InputError(f"{run}: expected a run of asegnet-fast {kind}, got one of asegnet-fast {found}")
    wanted = {
        "settings": {"data"},
        "data": {"fingerprint", "slices", "label_values", "notes", "leak_percent"},
        "environment": {"asegnet_fast", "torch", "python", "cpu"},
    }
    for part, keys in wanted.items():
        if not isinstance(config.get(part), dict) or not keys <= set(config[part]):
            raise InputError(f"{file}: expected {part} with {', '.join(sorted(keys))}, got less")
    given = {key: value for key, value in config["settings"].items() if value is not None}
    try:
        return Settings(**convert(given | {"out": str(run)})), config
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def check_run_folder(
    settings: Settings,
    resume: bool,
    fingerprint: str | None = None,
    kind: str = "crossval",
    fold: int | None = None,
) -> bool:
    """Refuse to write over anything but this very run.

    Args:
        settings: of the run to be made.
        resume: whether a run that is there may be continued.
        fingerprint: of the data, or None where they are not read yet.
        kind: the command that makes it, `crossval` or `train`.
        fold: of `train`.

    Returns:
        Whether the folder already holds this run. What a killed process left half-written in it is removed.

    Raises:
        ValueError: the folder is a file, holds other files, holds another run (the difference is named), or
            holds this run and `resume` is false.
    """
    out = Path(settings.out)
    check_writable(out)
    if not out.exists() or all(is_temporary(path) for path in out.iterdir()):
        remove_leftovers(out)
        return False
    if not (out / "config.json").exists():
        raise InputError(f"--out: expected a new or empty folder or a run, got {out} with other files in it")
    old, config = read_run(out, kind)
    there, asked = (
        key | {"fold": k} for key, k in ((old.run_key(), config.get("fold")), (settings.run_key(), fold))
    )
    changed = differences(there, asked)
    if fingerprint is not None and config["data"].get("fingerprint") != fingerprint:
        there, asked = (f"{text[:12]}" for text in (str(config["data"]["fingerprint"]), fingerprint))
        changed.append(f"data: slices with the fingerprint {there} there, {asked} asked")
    if changed:
        raise InputError(
            f"--out: expected a run with the same settings in {out}, got another ({'; '.join(changed)})"
        )
    if not resume:
        raise InputError(
            f"--out: expected a new folder, got {out} with this run in it (continue it with --resume)"
        )
    remove_leftovers(out)
    return True


def check_network(settings: Settings) -> None:
    """Refuse widths, numbers of convolutions and a size that make no network.

    Raises:
        ValueError: the message names the options.
    """
    from asegnet_fast.models.blocks import choose_layout

    try:
        depth = len(choose_layout(settings.preset, settings.widths, settings.convs).widths)
    except ValueError as error:
        raise InputError(f"--widths, --convs: {error}") from None
    if settings.size < 2**depth:
        raise InputError(
            f"--size: expected at least {2**depth}, because each of the {depth} sections halves it, "
            f"got {settings.size}"
        )
