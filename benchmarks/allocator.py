"""The allocator settings that every side is timed under.

With glibc's defaults a fresh tensor of more than 32 MB is mapped anew and page-faults on every use, which costs
more than the op. Imports neither torch nor numpy: the settings are read when a process starts.
"""

from __future__ import annotations

import os
import sys

CHOICES = ("tuned", "default")
#: Large blocks come from the heap, and the heap is never given back.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def in_force() -> dict[str, str]:
    """The settings this process was started with; empty for glibc's defaults."""
    return {name: os.environ[name] for name in TUNED if name in os.environ}


def restart_with(choice: str, module: str) -> None:
    """Start `python -m module` again with the same arguments, unless the settings of `choice` are in force."""
    wanted = TUNED if choice == "tuned" else {}
    if in_force() == wanted:
        return
    environment = {name: value for name, value in os.environ.items() if name not in TUNED} | wanted
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


def choice_in(arguments: list[str]) -> str:
    """The value of --allocator, read before the argument parser (and torch) is loaded."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--allocator"):
            value = argument.partition("=")[2] or "".join(arguments[i + 1 : i + 2])
            return value if value in CHOICES else "tuned"  # the parser names a wrong value
    return "tuned"
