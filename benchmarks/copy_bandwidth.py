"""Copy bandwidth: what the memory gives to one read and one write of the same total size.

Two copies, and the faster one counts: `torch.Tensor.copy_` (ordinary stores, which read the target's lines first
once it is larger than the cache), and memcpy on all threads with its threshold for streaming (non-temporal) stores
lowered. The threshold is a setting of the whole process, so that copy runs in one of its own, without torch.
"""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_ROUNDS = 15
_STREAM_ALWAYS = "glibc.cpu.x86_non_temporal_threshold=0x10000"


def _seconds(copy: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS + 2):
        start = time.perf_counter()
        copy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _memcpy_gigabytes_per_second(size: int, threads: int) -> float:
    """Copy `size` bytes; called in a process of its own, see above."""
    buffers = [mmap.mmap(-1, size) for _ in range(2)]
    target, source = (ctypes.addressof(ctypes.c_char.from_buffer(b)) for b in buffers)
    ctypes.memset(source, 1, size)
    part = max(64, size // threads // 64 * 64)
    spans = [(at, min(part, size - at)) for at in range(0, size, part)]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda span: ctypes.memmove(target + span[0], source + span[0], span[1]), spans))

        return 2 * size / _seconds(copy) / 1e9


@functools.cache
def measure(bytes_moved: int, device_type: str, threads: int) -> dict[str, float]:
    """GB/s of each kind of copy that reads and writes `bytes_moved` bytes in all."""
    import torch  # the streaming copy's process has no use for it

    size = max(64, bytes_moved // 2)
    if device_type == "cuda":
        from benchmarks.timing import cuda_seconds

        source = torch.ones(size, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        seconds = statistics.median(cuda_seconds(lambda: target.copy_(source), _ROUNDS))
        return {"copy_": 2 * size / seconds / 1e9}
    source = torch.ones(size // 4 + 1, dtype=torch.float32)
    target = torch.zeros_like(source)
    found = {"copy_": 2 * size / _seconds(lambda: target.copy_(source)) / 1e9}
    environment = os.environ | {"GLIBC_TUNABLES": _STREAM_ALWAYS}
    command = [sys.executable, "-m", "benchmarks.copy_bandwidth", str(size), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return found | {"streaming memcpy": json.loads(done.stdout)}


if __name__ == "__main__":
    print(json.dumps(_memcpy_gigabytes_per_second(int(sys.argv[1]), int(sys.argv[2]))))
