"""The rooms of the house and the arrows between them."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asegnet_fast"
OPS = sorted(p.name for p in (PACKAGE / "ops").iterdir() if p.is_dir() and not p.name.startswith("_"))

#: What every room may import.
EVERYWHERE = {"errors"}
#: What a room may import from the package, besides itself. Longest prefix counts.
ALLOWED = {
    "asegnet_fast": {"ops", "nn", "models", "compat", "fusion"},
    "asegnet_fast._extension": set(),
    "asegnet_fast.errors": set(),
    "asegnet_fast.files": set(),
    "asegnet_fast.paper": set(),
    "asegnet_fast.environment": {"_extension"},
    "asegnet_fast.checkpoint": {"models", "files"},
    "asegnet_fast.ops": {"_extension"},
    "asegnet_fast.nn": {"ops"},
    "asegnet_fast.compat": {"ops"},
    "asegnet_fast.fusion": {"nn", "ops"},
    "asegnet_fast.models": {"nn", "ops"},
    "asegnet_fast.data": {"files"},
    "asegnet_fast.evaluation": {"checkpoint", "models", "data", "files"},
    "asegnet_fast.training": {
        "evaluation",
        "checkpoint",
        "models",
        "data",
        "nn",
        "ops",
        "environment",
        "files",
        "paper",
    },
    "asegnet_fast.inference": {"checkpoint", "data", "environment", "files"},
    "asegnet_fast.report": {"evaluation", "checkpoint", "data", "models", "files", "paper"},
    "asegnet_fast.cli": {
        "training",
        "inference",
        "evaluation",
        "report",
        "data",
        "environment",
        "_extension",
        "files",
    },
    "asegnet_fast.__main__": {"cli"},
}
#: Besides torch and triton: what the kernels of all ops share.
TRITON_MAY_IMPORT = ("asegnet_fast.ops._triton", "asegnet_fast.ops._layout")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Dotted names of the package's own modules that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {f for f in found if f.split(".")[0] == "asegnet_fast"}


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    name = module_name(path)
    own = room(name)
    assert own in ALLOWED, f"{name}: a room without a rule in ALLOWED"
    for imported in imports(path):
        target = room(imported)
        if target in (own, "asegnet_fast") or not is_module(target):
            # `import asegnet_fast as af` in the rooms above nn is the public interface.
            continue
        assert target.split(".")[1] in ALLOWED[own] | EVERYWHERE, f"{name} imports {imported}"


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_its_fixed_files(op):
    for name in ("__init__.py", "op.py", "reference.py", "samples.py"):
        assert (PACKAGE / "ops" / op / name).exists(), name
    for name in ("math.h", "kernels.h", "simd.cpp", "cpu.cpp"):
        assert (ROOT / "csrc" / op / name).exists(), name
    assert (ROOT / "tests" / "ops" / f"test_{op}.py").exists()
    assert (ROOT / "benchmarks" / "ops" / f"{op}.py").exists()


@pytest.mark.parametrize("op", OPS)
def test_an_op_imports_no_other_op_and_its_reference_only_torch(op):
    for path in (PACKAGE / "ops" / op).glob("*.py"):
        for imported in imports(path):
            parts = imported.split(".")
            assert len(parts) < 3 or parts[2] not in OPS or parts[2] == op, f"{path.name} imports {imported}"
        if path.name == "reference.py":
            assert not imports(path), f"{op}/{path.name} imports {imports(path)}"
        if path.name == "triton_kernels.py":
            own = {i for i in imports(path) if not i.startswith(TRITON_MAY_IMPORT)}
            assert not own, f"{op}/{path.name} imports {own}"


@pytest.mark.parametrize("op", OPS)
def test_a_native_op_includes_common_and_itself_only(op):
    for path in (ROOT / "csrc" / op).iterdir():
        for include in re.findall(r'#include "([^"]+)"', path.read_text()):
            assert include.split("/")[0] in ("common", op), f"{path}: {include}"


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").glob("*/simd.cpp")), ids=lambda p: p.parent.name)
def test_per_isa_code_uses_no_standard_library(path):
    """A template instantiated under AVX-512 flags could be the one the linker keeps for every machine."""
    seen = {path}
    queue = [path]
    while queue:
        text = queue.pop().read_text()
        for include in re.findall(r'#include "([^"]+)"', text):
            target = ROOT / "csrc" / include
            if target not in seen:
                seen.add(target)
                queue.append(target)
        for header in re.findall(r"#include <([^>]+)>", text):
            # isa.h reads the environment in an ordinary inline function of its own; the rest are C headers.
            assert header in (
                "cstdint",
                "cstdlib",
                "cstring",
                "cstddef",
                "cmath",
                "cfloat",
                "new",
                "immintrin.h",
            ), header


def test_the_environment_is_read_in_one_place():
    """ASEGNET_FAST_BACKEND has one reader."""
    readers = [
        p
        for p in PACKAGE.rglob("*.py")
        if re.search(r'^_VARIABLE = "ASEGNET_FAST_BACKEND"', p.read_text(), re.M)
    ]
    assert readers == [PACKAGE / "ops" / "_library.py"]
    for path in PACKAGE.rglob("*.py"):
        assert path in readers or 'ASEGNET_FAST_BACKEND"' not in path.read_text(), path


def test_the_version_stands_once():
    """pyproject.toml holds it; everything else asks the installed metadata."""
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    for path in [*PACKAGE.rglob("*.py"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]:
        assert f'"{version}"' not in path.read_text(), path


def test_no_machine_paths_in_the_tree():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.split():
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".cpp", ".h", ".cu", ".cuh", ".toml", ".txt", ".json")
            and path.exists()
        ):
            assert not re.search(r"[^\w](/home|/root|/work|/Users)/", path.read_text()), name
