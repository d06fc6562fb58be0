"""setuptools' build backend, building against the torch that is already installed.

pip isolates a build from the environment it installs into. `python -I` ignores the variables by which it does
so, and therefore sees that environment's torch. Where it finds one, torch is no build requirement and nothing
is downloaded; where it finds none, ASEGNET_FAST_BUILD_TORCH names the requirement.
"""

import json
import os
import subprocess
import sys

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import get_requires_for_build_editable as _for_editable
from setuptools.build_meta import get_requires_for_build_wheel as _for_wheel

DEFAULT_TORCH = "torch==2.13.0"

_PROBE = """
import json, os, torch
root = os.path.dirname(torch.__file__)
print(json.dumps({"version": torch.__version__, "include": os.path.join(root, "include"),
                  "lib": os.path.join(root, "lib")}))
"""


def find_torch():
    """{"version", "include", "lib"} of the torch to build against, or None. This environment's own comes first."""
    for flags in ([], ["-I"]):
        done = subprocess.run([sys.executable, *flags, "-c", _PROBE], capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
    return None


def _with_torch(requirements):
    return (
        requirements
        if find_torch()
        else [*requirements, os.environ.get("ASEGNET_FAST_BUILD_TORCH", DEFAULT_TORCH)]
    )


def get_requires_for_build_wheel(config_settings=None):
    return _with_torch(_for_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    return _with_torch(_for_editable(config_settings))
