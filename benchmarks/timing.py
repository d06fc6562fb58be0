"""Timing of several functions against each other: rounds that take turns, median and quartiles.

On the GPU a sample is one call between two events, after the L2 cache was overwritten. On the CPU it is the mean
of as many calls as fill a millisecond; small inputs therefore stay in the cache, for every side alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch

_SAMPLE_SECONDS = 1e-3
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 50
_L2_FLUSH_BYTES = 256 * 2**20


def _cpu_seconds(function: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - start) / number


def cuda_seconds(function: Callable[[], object], number: int) -> list[float]:
    """Seconds of each of `number` calls on the GPU."""
    flush = torch.empty(_L2_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events = []
    for _ in range(number):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def summary(samples: list[float]) -> dict[str, float | int]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median_ms": middle * 1e3,
        "lower_quartile_ms": low * 1e3,
        "upper_quartile_ms": high * 1e3,
        "rounds": len(samples),
    }


def interleaved(
    functions: Mapping[str, Callable[[], object]], device_type: str, seconds: float
) -> dict[str, dict[str, float | int]]:
    """Time each function in rounds that take turns, about `seconds` for each.

    Returns:
        For each name median_ms, lower_quartile_ms, upper_quartile_ms, rounds.
    """
    names = list(functions)
    once, number = {}, {}
    for name in names:
        functions[name]()  # warm up
        if device_type == "cuda":
            once[name] = statistics.median(cuda_seconds(functions[name], 3))
        else:
            once[name] = _cpu_seconds(functions[name], 1)
        number[name] = max(1, math.ceil(_SAMPLE_SECONDS / max(once[name], 1e-6)))
    one_round = sum(max(once[name], _SAMPLE_SECONDS) for name in names)
    rounds = min(_MOST_ROUNDS, max(_LEAST_ROUNDS, int(seconds * len(names) / one_round)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if device_type == "cuda":
                samples[name] += cuda_seconds(functions[name], 1)
            else:
                samples[name].append(_cpu_seconds(functions[name], number[name]))
    return {name: summary(samples[name]) for name in names}
