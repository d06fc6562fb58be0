"""Where results go: a JSON file that says how they were made, and a table for the terminal."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from asegnet_fast import _extension
from benchmarks import allocator

ROOT = Path(__file__).parent
_VERSION = re.compile(r'^version = "([^"]+)"', re.MULTILINE)


def version() -> str:
    """The project's version, from its one place."""
    return _VERSION.search((ROOT.parent / "pyproject.toml").read_text()).group(1)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.M)
    return found.group(1) if found else platform.machine()


def machine(device: torch.device) -> str:
    """A name for the kind of machine: GPU model, or processor, instruction set and cores."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()} {_extension.active_isa()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def conditions(device: torch.device, threads: int) -> dict:
    """Everything outside the code that the times depend on."""
    about = {
        "version": version(),
        "machine": machine(device),
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": threads,
        "allocator": allocator.in_force() or "default",
        "isa": _extension.active_isa(),
        # Near the number of threads on a quiet machine; more says that other programs ran beside.
        "load_average": os.getloadavg()[0],
    }
    if device.type == "cuda":
        about["cuda"] = torch.version.cuda
    return about


def folder(out: Path | None) -> Path:
    """Where results files lie: `out`, or results/<version>."""
    return out or ROOT / "results" / version()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write(report: dict, suite: str, out: Path | None) -> Path:
    """Write `<suite>--<machine>--<device>.json` in `folder(out)`."""
    about = report["conditions"]
    path = folder(out) / f"{suite}--{about['machine']}--{about['device']}.json"
    write_text(path, json.dumps(report, indent=1) + "\n")
    return path


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry; the first three to the left, numbers to the right."""
    widths = [max(len(r[i]) for r in (headings, *rows)) for i in range(len(headings))]

    def line(entries: Sequence[str]) -> str:
        cells = (
            e.ljust(w) if i < 3 else e.rjust(w) for i, (e, w) in enumerate(zip(entries, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(headings), line(["-" * w for w in widths]), *map(line, rows)])


def option_problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options that all suites share; None where nothing is."""
    for name in ("threads", "batch", "size", "seconds"):
        value = getattr(options, name, None)
        if value is not None and not value > 0:
            return f"--{name}: expected a number above 0, got {value}"
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device: expected a device that is there, got cuda and this torch sees no GPU"
    return None


def fail(message: str) -> int:
    """One line for a wrong option; the exit status 2."""
    print(message, file=sys.stderr)
    return 2
