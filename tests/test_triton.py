"""The Triton kernels without a GPU: the ops' tests in Triton's interpreter, compilation, and what chooses them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import asegnet_fast as af
from asegnet_fast.ops import _library

ROOT = Path(__file__).parent.parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here")
#: Most shared memory of a block that leaves room for a second one on sm_80.
SHARED = 81 * 1024


def python(*words, timeout=600, **environment):
    words = [sys.executable, *map(str, words)]
    env = os.environ | environment
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, timeout=timeout)


def folders_with_triton():
    return {p.parent.name for p in (ROOT / "asegnet_fast" / "ops").glob("*/triton_kernels.py")}


def run_in_the_interpreter(**environment):
    """Every test that is marked `triton`, served by Triton's kernels."""
    files = [f"tests/ops/test_{name}.py" for name in (*sorted(folders_with_triton()), "triton_limits")]
    environment |= {"TRITON_INTERPRET": "1", "ASEGNET_FAST_BACKEND": "triton"}
    done = python("-m", "pytest", "-m", "triton", "-p", "no:cacheprovider", *files, **environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@needs_triton
def test_the_kernels_in_the_interpreter():
    """A few samples that have every option, and a few random ones."""
    run_in_the_interpreter(ASEGNET_TEST_SAMPLES="few", ASEGNET_TEST_EXAMPLES="6")


@needs_triton
@pytest.mark.extended
def test_the_kernels_in_the_interpreter_on_all_samples():
    run_in_the_interpreter(ASEGNET_TEST_SAMPLES="all", ASEGNET_TEST_EXAMPLES="150", timeout=7200)


def compile_kernels(tmp_path, *words, spilled=0):
    """Rows of the table of `benchmarks.triton_kernels`, compiled from nothing."""
    out = tmp_path / "table.md"
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = python("-m", "benchmarks.triton_kernels", "--out", out, *words, timeout=3600, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("|")]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    for row in rows:
        assert int(row["spilled, B"]) <= spilled, row
        assert 0 < int(row["registers"]) <= 255 and int(row["shared, B"]) <= SHARED, row
    return rows


@needs_triton
def test_the_kernels_compile_without_spills(tmp_path):
    """Those that training runs: halves in channels_last, for sm_90."""
    rows = compile_kernels(tmp_path, "--sm", 90, "--dtypes", "bf16", "--layouts", "channels_last")
    assert {row["op"] for row in rows} == folders_with_triton()


@needs_triton
@pytest.mark.extended
def test_all_kernels_compile_almost_without_spills(tmp_path):
    """ptxas spills a few bytes of some float32 and double kernels, at register counts where it need not."""
    rows = compile_kernels(tmp_path, spilled=16)
    assert {row["sm"] for row in rows} == {"80", "90"}


# ---- which kernel serves --------------------------------------------------------------------------------


def on(device):
    """All of a tensor that the choice looks at."""
    return SimpleNamespace(device=torch.device(device), is_cpu=device == "cpu")


def test_the_order_of_choice(monkeypatch):
    op = _library._ops["max_pool2x2"]
    monkeypatch.setattr(_library, "_why_not_triton", lambda op, device: None)
    monkeypatch.setattr(op, "native_on", frozenset({"cpu", "cuda"}))
    with af.use_backend("auto"):
        assert _library.serving(op, on("cuda")) is op
        monkeypatch.setattr(op, "native_on", frozenset({"cpu"}))
        assert _library.serving(op, on("cuda")) is op.triton
        assert _library.serving(op, on("cpu")) is op
    with af.use_backend("triton"):
        assert _library.serving(op, on("cuda")) is op.triton
    with (
        af.use_backend("native"),
        pytest.raises(RuntimeError, match="expected a native kernel for max_pool2x2 on cuda"),
    ):
        _library.serving(op, on("cuda"))
    monkeypatch.setattr(_library, "_why_not_triton", lambda op, device: "Triton is not installed")
    with af.use_backend("auto"):
        assert _library.serving(op, on("cuda")) is op
    with (
        af.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"expected a Triton kernel .* got none: Triton is not installed"),
    ):
        _library.serving(op, on("cuda"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@needs_triton
def test_the_report_says_why_not():
    report = af.backends()["max_pool2x2"]
    assert "TRITON_INTERPRET" in report["cpu"]["triton"]
    assert report["cuda"]["triton"] == "this torch has no CUDA" and report["cuda"]["serves"] == "reference"
    show = "import asegnet_fast as af; print(af.backends()['max_pool2x2']['cpu'])"
    said = python("-c", show, TRITON_INTERPRET="1").stdout
    assert "'triton': 'available'" in said and "'serves': 'triton'" not in said
    assert (
        "'serves': 'triton'" in python("-c", show, TRITON_INTERPRET="1", ASEGNET_FAST_BACKEND="triton").stdout
    )


def test_import_leaves_triton_alone():
    done = python("-c", "import sys, asegnet_fast; sys.exit('triton' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_without_triton():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
import torch, asegnet_fast as af
assert af.max_pool2x2(torch.ones(1, 1, 2, 2))[0].item() == 1
assert af.backends()["max_pool2x2"]["cuda"]["triton"] == "Triton is not installed"
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
