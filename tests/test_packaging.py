"""Every way of installing, each in a fresh environment made from the sdist. Run by `make test-packaging`.

Slow, and the isolated builds need a package index, so plain `make test` leaves these out.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc")
#: The report that every installed copy is asked for.
PROBE = """
import json, torch, asegnet_fast as af
from asegnet_fast import _extension
try:
    from asegnet_fast import _C
    same = _C.build_info() == _extension.build_info()
except ImportError:
    same = None
y, code = af.max_pool2x2(torch.arange(16.0).view(1, 1, 4, 4))
print(json.dumps({"file": af.__file__, "torch_file": torch.__file__, "y": y.flatten().tolist(),
                  "cpu": af.backends()["max_pool2x2"]["cpu"], "absent": _extension.absent, "same": same,
                  "info": _extension.build_info()}))
"""


def run(*words, env=None, **options):
    environment = {k: v for k, v in (env or os.environ).items() if k != "PYTHONPATH"}
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, env=environment, **options)


def succeed(*words, **options):
    done = run(*words, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    succeed(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture
def source(sdist, tmp_path):
    """A writable copy of the project holding just what the sdist holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (folder,) = (tmp_path / "source").iterdir()
    return folder


@pytest.fixture
def python(tmp_path):
    """A new environment in which this one's torch and build tools are seen as installed."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    purelib = Path(
        succeed(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    )
    # Python 3.11 and older put an old setuptools into a new environment; it would stand before the outer one.
    run(interpreter, "-m", "pip", "uninstall", "--yes", "setuptools")
    (purelib / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def pip_install(python, *words, env=None, **options):
    return run(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", *words, env=env, **options)


def probe(python, env=None):
    return json.loads(succeed(python, "-c", PROBE, cwd=python.parent, env=env).stdout.splitlines()[-1])


def without_compiler(python, tmp_path):
    """PATH with cmake and ninja but no compiler."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        (tools / name).symlink_to(Path(sys.executable).parent / name)
    environment = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX")}
    return environment | {"PATH": f"{tools}:{python.parent}"}


def test_plain_pip_builds_against_the_installed_torch(sdist, python):
    done = pip_install(python, "--verbose", sdist)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Collecting torch" not in done.stdout and "Downloading torch" not in done.stdout
    found = probe(python)
    import torch

    assert found["torch_file"] == torch.__file__
    assert found["cpu"]["serves"] == "native" and found["same"] is True and found["y"] == [5, 7, 13, 15]
    assert str(python.parent.parent) in found["file"]


def test_editable_without_isolation(source, python):
    done = pip_install(python, "--no-build-isolation", "-e", source)
    assert done.returncode == 0, done.stderr[-3000:]
    found = probe(python)
    assert found["file"] == str(source / "asegnet_fast" / "__init__.py")
    assert found["cpu"]["serves"] == "native" and found["same"] is True


def test_a_wheel_serves_another_python(source, tmp_path):
    out = tmp_path / "wheel"
    succeed(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source
    )
    (wheel,) = out.glob("*.whl")
    assert wheel.name.split("-")[2:4] == ["py3", "none"] and "linux" in wheel.name.split("-")[4]
    templates = {f"asegnet_fast/report/templates/page.{kind}" for kind in ("html", "css")}
    assert templates <= set(zipfile.ZipFile(wheel).namelist())
    other = other_python()
    if other is None:
        pytest.skip("no other Python 3.10 or later on this machine")
    succeed(other, "-m", "venv", tmp_path / "other")
    interpreter = tmp_path / "other" / "bin" / "python"
    succeed(interpreter, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    found = succeed(
        interpreter,
        "-c",
        "import importlib.util as u, pathlib; p = pathlib.Path(u.find_spec('asegnet_fast').origin).parent; "
        "print(sorted(f.name for f in (p / 'lib').iterdir()))",
        cwd=tmp_path,
    ).stdout
    assert "libasegnet_fast_cpu.so" in found and "build_info.json" in found


def other_python():
    """An interpreter of another version, on PATH or beside this one's base installation."""
    own = sys.version_info[:2]
    names = [f"3.{minor}" for minor in range(10, 16) if (3, minor) != own]
    versions = Path(sys.base_prefix).parent
    candidates = [
        p for n in names for p in (shutil.which(f"python{n}"), *versions.glob(f"{n}.*/bin/python3")) if p
    ]
    return next((c for c in candidates if run(c, "-c", "import venv, ensurepip").returncode == 0), None)


def test_no_compiler_installs_pure_python(source, python, tmp_path):
    done = pip_install(
        python, "--verbose", "--no-build-isolation", source, env=without_compiler(python, tmp_path)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no C++ compiler found; installing without native kernels" in done.stdout + done.stderr
    found = probe(python)
    assert found["cpu"]["serves"] == "reference" and "not built" in found["cpu"]["native"]
    assert found["y"] == [5, 7, 13, 15]


def test_no_compiler_is_an_error_when_the_extension_is_required(source, python, tmp_path):
    environment = without_compiler(python, tmp_path) | {"ASEGNET_FAST_REQUIRE_EXT": "1"}
    done = pip_install(python, "--no-build-isolation", source, env=environment)
    assert done.returncode != 0
    assert "ASEGNET_FAST_REQUIRE_EXT=1: expected a C++ compiler" in done.stdout + done.stderr


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
def test_nvcc_builds_the_cuda_library_against_any_torch(source, python):
    done = pip_install(python, "--no-build-isolation", source, env=os.environ | {"ASEGNET_FAST_CUDA": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = probe(python)
    assert found["info"]["cuda"] and found["info"]["cuda_architectures"]
    library = Path(found["file"]).parent / "lib" / "libasegnet_fast_cuda.so"
    assert library.exists()
    import torch

    if torch.version.cuda is None:
        assert found["absent"]["cuda"] == "this torch has no CUDA"
    else:
        assert found["absent"]["cuda"] is None


def test_a_wrong_switch_is_refused(source, python):
    done = pip_install(python, "--no-build-isolation", source, env=os.environ | {"ASEGNET_FAST_CUDA": "yes"})
    assert done.returncode != 0
    assert "ASEGNET_FAST_CUDA: expected 0 or 1, got 'yes'" in done.stdout + done.stderr
