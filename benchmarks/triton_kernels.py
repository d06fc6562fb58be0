"""Registers, spills and shared memory of the Triton kernels: `python -m benchmarks.triton_kernels [--out FILE]`.

Needs no GPU: the ops' host functions run on tensors without data, and every kernel that they would launch is
compiled for the given architectures by the ptxas that comes with Triton, with the arguments' real types, strides and
tile sizes. That they run so also shows that they read no value of a tensor, as a CUDA graph demands.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from asegnet_fast.ops import _library
from benchmarks.results import ROOT, version

OPS = ("attention_gate", "bn_relu", "max_pool2x2", "tversky")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
ARCHITECTURES = (80, 90)
TITLE = "# Triton kernels as compiled"


class Compiled(NamedTuple):
    """One kernel for one architecture.

    spilled: bytes a thread that ptxas stores for want of registers. shared: bytes a block.
    """

    op: str
    kernel: str
    case: str
    sm: int
    warps: int
    registers: int
    spilled: int
    shared: int
    seconds: float


class _NoDevice:
    """In place of Triton's driver: says which architecture to compile for."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.sm  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


def _registers(cubin: bytes) -> int:
    """Registers a thread, as cuobjdump says, which comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(tool), "-res-usage", file.name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"\bREG:(\d+)", said))


def compiled(
    ops: Sequence[str], dtypes: Sequence[str], architectures: Sequence[int], layouts: Sequence[str]
) -> Iterator[Compiled]:
    """Every different kernel that the ops launch in the cases of `benchmarks.ops.<op>.triton_cases`.

    For a process of its own: Triton is left with a driver that cannot launch.
    """
    if _library.INTERPRETING:
        raise RuntimeError("TRITON_INTERPRET: expected 0, got 1: the interpreter compiles nothing")
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launched: list[tuple[str, object, float]] = []
    spilled: dict[str, int] = {}
    launch = JITFunction.run
    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True

    def compile_only(self, *args, grid, warmup, **options):
        start, said = time.perf_counter(), io.StringIO()
        with contextlib.redirect_stdout(said):
            kernel = launch(self, *args, grid=grid, warmup=True, **options)
        spills = re.findall(r"(\d+) bytes spill stores", said.getvalue())
        if spills:  # else it was compiled before
            spilled[kernel.hash] = sum(map(int, spills))
        launched.append((self.__name__, kernel, time.perf_counter() - start))
        return kernel

    JITFunction.run = compile_only
    try:
        for sm in architectures:
            driver.set_active(_NoDevice(sm))
            for op in ops:
                cases = importlib.import_module(f"benchmarks.ops.{op}").triton_cases
                kernels = importlib.import_module(f"asegnet_fast.ops.{op}.triton_kernels")
                seen = set()
                for name, run in _cases(cases, dtypes, layouts):
                    launched.clear()
                    run(kernels)
                    for kernel_name, kernel, seconds in launched:
                        if kernel.hash in seen:
                            continue
                        seen.add(kernel.hash)
                        yield Compiled(
                            op,
                            kernel_name.strip("_").removesuffix("_kernel"),
                            name,
                            sm,
                            kernel.metadata.num_warps,
                            _registers(kernel.asm["cubin"]),
                            spilled[kernel.hash],
                            kernel.metadata.shared,
                            seconds,
                        )
    finally:
        JITFunction.run = launch


def _cases(cases: Callable, dtypes: Sequence[str], layouts: Sequence[str]) -> Iterator[tuple[str, Callable]]:
    for dtype in dtypes:
        for layout in layouts:
            for name, run in cases(DTYPES[dtype], LAYOUTS[layout]):
                yield f"{name}, {dtype} {layout}", run


def table(rows: Sequence[Compiled]) -> str:
    import triton

    lines = [
        TITLE,
        "",
        f"Version {version()}, Triton {triton.__version__}; written by `python -m benchmarks.triton_kernels`.",
        "Registers and spilled bytes are per thread, shared memory is per block. These kernels are tested in Triton's",
        "interpreter and compiled; **no GPU has run them**.",
        "",
        "| op | kernel | case | sm | warps | registers | spilled, B | shared, B |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(str(v) for v in row[:-1])} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ops", nargs="+", default=OPS, choices=OPS)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--sm", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / version() / "triton-kernels.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = list(compiled(options.ops, options.dtypes, options.sm, options.layouts))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table(rows))
    print(table(rows))
    print(f"{len(rows)} kernels, {sum(r.seconds for r in rows):.0f} s of compilation")


if __name__ == "__main__":
    main()
