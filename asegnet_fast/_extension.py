"""Loads the kernel libraries, and keeps the reason where one is absent.

The libraries hold no Python: they register C++ and CUDA kernels with torch's dispatcher for the schemas that
`asegnet_fast.ops` defines. Importing this module loads them; nothing is built or printed.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent / "lib"
_NOT_BUILT = (
    "not built (no compiler when the package was installed, or run from a source tree without a build)"
)


def build_info() -> dict:
    """What was built: version, compiler, isas, cuda, cuda_architectures, torch_target; empty where nothing was."""
    path = _FOLDER / "build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _cuda_obstacle() -> str | None:
    """Why the CUDA library must not be loaded into this torch, or None."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    built, have = build_info().get("cuda", "").split(".")[0], torch.version.cuda.split(".")[0]
    return None if built == have else f"built with CUDA {built}, this torch has CUDA {torch.version.cuda}"


def _load(device: str) -> str | None:
    """Load one library; None when that worked, else the reason why it is absent."""
    path = _FOLDER / f"libasegnet_fast_{device}.so"
    if not path.exists():
        return (
            "not built (nvcc not found, or switched off)" if device == "cuda" and build_info() else _NOT_BUILT
        )
    obstacle = _cuda_obstacle() if device == "cuda" else None
    if obstacle:
        return obstacle
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        # It was built and should load: say so once, and go on with the reference.
        warnings.warn(f"asegnet_fast: {path.name} does not load: {error}", RuntimeWarning, stacklevel=2)
        return f"does not load: {error}"
    return None


#: For each native library ("cpu", "cuda"): None when it is loaded, else the reason why it is not.
absent: dict[str, str | None] = {device: _load(device) for device in ("cpu", "cuda")}


def active_isa() -> str:
    """Name of the instruction set whose kernels serve the CPU here, as csrc/common/isa.h chooses it."""
    if absent["cpu"] is not None:
        return "none"
    library = ctypes.CDLL(str(_FOLDER / "libasegnet_fast_cpu.so"))
    library.asegnet_fast_active_isa.restype = ctypes.c_char_p
    return library.asegnet_fast_active_isa().decode()
