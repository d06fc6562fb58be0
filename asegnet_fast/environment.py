"""What the program runs on, and the one setting of the process that decides its speed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from asegnet_fast.errors import InputError

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_large_allocations() -> bool:
    """Let glibc keep freed memory instead of returning it: a fresh large tensor then costs no page faults.

    Returns:
        Whether it was done; elsewhere than on Linux with glibc nothing is changed.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


@contextlib.contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Let torch use only what gives the same bits at every repetition on one machine, for the time of a `with` block.

    Args:
        wanted: False leaves torch as it is.

    Raises:
        RuntimeError: inside the block, from an operation of torch that has no such implementation.
    """
    import torch

    if not wanted:
        yield
        return
    # Read when cuBLAS is used first; torch refuses its matrix products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Filling finds outputs that nobody writes, which is for tests; it costs a pass over each.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware that a result depends on.

    Args:
        device: `cpu`, `cuda` or `cuda:N`, as used.
    """
    import numpy
    import torch

    from asegnet_fast import _extension

    found: dict[str, Any] = {
        "asegnet_fast": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _extension.active_isa(),
        "device": device,
    }
    if device.startswith("cuda"):
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def choose_device(name: str) -> str:
    """Turn `--device` into a device that is there.

    Args:
        name: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: another name, or a device that is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    kind, _, index = name.partition(":")
    if name == "cpu" or (kind == "cuda" and (not index or index.isdecimal())):
        if kind == "cuda" and int(index or 0) >= count:
            raise InputError(
                f"--device: expected a device that is there, got {name} ({count} CUDA devices found)"
            )
        return name
    raise InputError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")


def precision_note(precision: str, device: str) -> str | None:
    """What a user should know about a precision on this device; None where there is nothing to say."""
    import torch

    if precision != "bf16" or device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "bf16: oneDNN has no bfloat16 convolutions for this processor (AVX-512 is needed); fp32 is many times faster"


def check_backend(name: str, device: str) -> None:
    """Refuse a `--backend` that cannot serve every operation on the device.

    Raises:
        ValueError: with the first operation that it cannot serve, and why.
    """
    import asegnet_fast as af

    if name in ("auto", "reference"):
        return
    for op, devices in af.backends().items():
        if "2x2x2" in op:  # the program's networks have no volumes
            continue
        reason = devices[device.partition(":")[0]][name]
        if reason != "available":
            raise InputError(
                f"--backend: expected one that serves every operation, got {name} ({op}: {reason})"
            )


def _version() -> str:
    from asegnet_fast import _extension

    try:
        return metadata.version("asegnet-fast")
    except metadata.PackageNotFoundError:
        return _extension.build_info().get("version", "source tree, not installed")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
