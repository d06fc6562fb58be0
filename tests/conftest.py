"""Fixtures shared by all tests: seeds, threads, the folder of real data, GPU tests switched off without a GPU."""

import os
from pathlib import Path

# Several test processes share the cores (pytest -n): each, and what it starts, has one. Before torch reads it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """The folder named by ASEGNET_TEST_DATA (real CT, not part of the project)."""
    folder = os.environ.get("ASEGNET_TEST_DATA")
    if not folder:
        pytest.skip("ASEGNET_TEST_DATA is not set")
    return Path(folder)


def pytest_collection_modifyitems(config, items):
    # The longest file first: among the last it would keep one core at work and leave the others without.
    items.sort(key=lambda item: item.path.name != "test_triton.py")
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
