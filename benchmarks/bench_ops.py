"""The cases of `benchmarks/ops` under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

One benchmark for each case, pass and side; a group holds the sides that compete. `python -m benchmarks.run` times
the same in interleaved rounds, and its figures are the ones to quote.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks import common


@functools.lru_cache(maxsize=1)
def _sides(case: common.Case, settings: common.Settings) -> dict[str, common.Side]:
    return {side.name: side for side in common.checked_sides(case, settings)}


def _everything(config: pytest.Config) -> list:
    """(case, pass, side), the sides of a case next to each other."""
    batch = 16 if config.getoption("--on") == "cuda" else 4
    every = config.getoption("--all-levels")
    whos = ("ours", "eager", "torch.compile") if config.getoption("--with-compile") else ("ours", "eager")
    return [
        pytest.param(case, which, f"{who} {layout}", id=f"{case.op}-{case.id}-{which}-{who}-{layout}")
        for op in common.op_names()
        for case in common.cases_of(op, batch)
        if every or case.quick
        for which in case.bytes_moved
        for who in whos
        if case.compiled or who != "torch.compile"
        for layout in common.LAYOUTS
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "side_name" in metafunc.fixturenames:
        metafunc.parametrize(("case", "which", "side_name"), _everything(metafunc.config))


def test_op(benchmark, settings, case, which, side_name):
    """Timed only after the side's outputs and gradients matched the reference."""
    side = _sides(case, settings)[side_name]
    if side.error:
        pytest.fail(f"no time: {side.error}")
    benchmark.group = f"{case.id} {which}"
    benchmark.extra_info["bytes"] = case.bytes_moved[which]
    function = getattr(side, which)
    if settings.device.type == "cuda":  # wall-clock here; benchmarks.run times with events

        def synchronised() -> None:
            function()
            torch.cuda.synchronize()

        benchmark(synchronised)
    else:
        benchmark(function)
