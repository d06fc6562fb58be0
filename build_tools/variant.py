"""Runs Python on a copy of the package whose CPU library is built with other options than an installed one.

    python build_tools/variant.py sanitize -m pytest tests/ops

Library and copy lie in build/<variant>/. The copy is the working directory of the run and holds the tests too, so that
no other build can be imported by mistake.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.resolve()
sys.path.insert(0, str(ROOT / "build_tools"))
from build_backend import find_torch  # noqa: E402

#: What a run may import or read.
COPIED = (
    "asegnet_fast",
    "benchmarks",
    "build_tools",
    "csrc",
    "tests",
    "CMakeLists.txt",
    "README.md",
    "pyproject.toml",
)


class Variant(NamedTuple):
    cmake: Mapping[str, object]
    preload: tuple[str, ...] = ()  # of the compiler's runtime libraries
    environment: Mapping[str, str] = MappingProxyType({})


_SANITIZERS = Variant(
    {"ASEGNET_FAST_SANITIZE": "ON"},
    # Python itself has no sanitizer, so theirs must come first; libstdc++ beside it, for exceptions to be seen.
    ("libasan.so", "libubsan.so", "libstdc++.so"),
    {
        # Python and torch keep memory until the end of the process. An allocation that is refused must reach torch.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
)
VARIANTS = {
    "sanitize": _SANITIZERS,
    "sanitize-64": _SANITIZERS._replace(cmake={**_SANITIZERS.cmake, "ASEGNET_FAST_VECTOR_BYTES": 64}),
    # The logic of the AVX-512 kernels where there is no AVX-512.
    "vectors-64": Variant({"ASEGNET_FAST_VECTOR_BYTES": 64}),
}


def build(name: str) -> Path:
    """The folder of the up-to-date copy."""
    torch = find_torch()
    if torch is None:
        sys.exit("expected an installed torch to build against, got none")
    folder, tree = ROOT / "build" / name, ROOT / "build" / name / "tree"
    arguments = {
        "TORCH_INCLUDE": torch["include"],
        "TORCH_LIB": torch["lib"],
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_INSTALL_PREFIX": tree / "asegnet_fast",
        **VARIANTS[name].cmake,
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "lib")
    for source in map(ROOT.joinpath, COPIED):
        copy = shutil.copy2 if source.is_file() else lambda a, b: shutil.copytree(a, b, ignore=ignored)
        (tree).mkdir(parents=True, exist_ok=True)
        copy(source, tree / source.name)
    run = lambda *words: subprocess.run(["cmake", *map(str, words)], check=True, stdout=sys.stderr)  # noqa: E731
    run("-S", ROOT, "-B", folder, *generator, *(f"-D{k}={v}" for k, v in arguments.items()))
    run(
        "--build",
        folder,
        "--target",
        "install",
        "--parallel",
        os.environ.get("MAX_JOBS", os.cpu_count() or 1),
    )
    return tree


def runtime_library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(found.stdout.strip()).resolve())


#: Fails unless the library under test is the one that was built here.
_CHECK = """
import asegnet_fast, sys
from asegnet_fast import _extension
from pathlib import Path
assert Path(asegnet_fast.__file__).is_relative_to(Path.cwd()), asegnet_fast.__file__
assert _extension.absent["cpu"] is None, _extension.absent["cpu"]
assert str(Path.cwd()) in Path("/proc/self/maps").read_text()
print(f"{sys.argv[1]}: {_extension.active_isa()} kernels of {asegnet_fast.__file__}")
"""


def main() -> int:
    if len(sys.argv) < 3 or sys.argv[1] not in VARIANTS:
        sys.exit(f"usage: python build_tools/variant.py {'|'.join(VARIANTS)} PYTHON_ARGUMENTS...")
    name, *arguments = sys.argv[1:]
    variant = VARIANTS[name]
    tree = build(name)
    environment = os.environ | variant.environment
    if variant.preload:
        environment["LD_PRELOAD"] = ":".join(map(runtime_library, variant.preload))
    run = lambda *words: subprocess.run([sys.executable, *words], cwd=tree, env=environment).returncode  # noqa: E731
    return run("-c", _CHECK, name) or run(*arguments)


if __name__ == "__main__":
    sys.exit(main())
