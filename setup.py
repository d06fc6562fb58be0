"""Finds torch, drives CMake, copies the libraries. Sources and flags stand in CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_tools"))
from build_backend import find_torch  # noqa: E402


def switch(name):
    """True, False, or None when the variable is not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name}: expected 0 or 1, got {value!r}")
    return None if value == "" else value == "1"


def compiler():
    named = os.environ.get("CXX")
    return (
        shutil.which(named)
        if named
        else next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    )


class CMakeBuild(build_ext):
    """Builds every library with CMake and installs them into the package."""

    def build_extension(self, ext):
        torch = find_torch()
        if torch is None:
            sys.exit("asegnet_fast: expected an installed torch to build against (2.11 or later), got none")
        cmake = shutil.which("cmake")
        if cmake is None:
            sys.exit("asegnet_fast: expected cmake on PATH (pip install cmake ninja pybind11), got none")
        package = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        # CUDA follows torch unless said otherwise; nvcc alone is enough to build it.
        cuda = switch("ASEGNET_FAST_CUDA")
        if cuda is None:
            cuda = shutil.which("nvcc") is not None and "+cpu" not in torch["version"]
        elif cuda and shutil.which("nvcc") is None:
            sys.exit("ASEGNET_FAST_CUDA=1: expected nvcc on PATH, got none")
        arguments = {
            "TORCH_INCLUDE": torch["include"],
            "TORCH_LIB": torch["lib"],
            "PROJECT_VERSION_STRING": self.distribution.get_version(),
            "ASEGNET_FAST_CUDA": "ON" if cuda else "OFF",
            "CMAKE_INSTALL_PREFIX": package,
            "Python_EXECUTABLE": sys.executable,
        }
        try:
            import pybind11

            arguments["pybind11_DIR"] = pybind11.get_cmake_dir()
        except ImportError:
            pass  # CMake leaves `_C` out and says so
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        shutil.rmtree(package / "lib", ignore_errors=True)
        with tempfile.TemporaryDirectory() as build:
            run = lambda *words: subprocess.run([cmake, *map(str, words)], check=True)  # noqa: E731
            run("-S", ROOT, "-B", build, *generator, *(f"-D{k}={v}" for k, v in arguments.items()))
            run(
                "--build",
                build,
                "--target",
                "install",
                "--parallel",
                os.environ.get("MAX_JOBS", os.cpu_count() or 1),
            )

    def copy_extensions_to_source(self):
        """For an editable install: what CMake installed goes beside the sources."""
        shutil.copytree(Path(self.build_lib) / "asegnet_fast", ROOT / "asegnet_fast", dirs_exist_ok=True)


class AnyPythonWheel(bdist_wheel):
    """The libraries hold no Python, so one wheel of a platform serves every Python 3 (`_C` may be missing there)."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


extensions = [Extension("asegnet_fast._C", sources=[])]
if compiler() is None:
    if switch("ASEGNET_FAST_REQUIRE_EXT"):
        sys.exit(
            "ASEGNET_FAST_REQUIRE_EXT=1: expected a C++ compiler (CXX, c++, g++ or clang++) on PATH, got none"
        )
    print(
        "asegnet_fast: no C++ compiler found; installing without native kernels (plain PyTorch serves every op)",
        file=sys.stderr,
    )
    extensions = []

setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel})
