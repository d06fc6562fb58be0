"""Two processes with torch.distributed (gloo) between them, started once for all tests."""

import atexit
import functools
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORLD = 2
_folder = tempfile.TemporaryDirectory(prefix="asegnet-fast-tests-")


def together(function: Callable, *args: Any) -> list[Any]:
    """`function(rank, *args)` in both processes at once; what each returned.

    Args:
        function: of a module, so that it can be named to another process.
        args, and what it returns: anything that can be pickled.
    """
    pipes = _processes()
    for pipe in pipes:
        pipe.send((function, args))
    answers = [pipe.recv() for pipe in pipes]
    for failed, answer in answers:
        if failed:
            raise AssertionError(answer)
    return [answer for _, answer in answers]


@functools.cache
def _processes() -> list:
    context = multiprocessing.get_context("spawn")
    store = Path(_folder.name) / "store"
    pipes = []
    for rank in range(WORLD):
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(rank, str(store), theirs), daemon=True).start()
        pipes.append(ours)
    atexit.register(lambda: [pipe.send(None) for pipe in pipes])
    return pipes


def _serve(rank: int, store: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    while (work := pipe.recv()) is not None:
        function, args = work
        torch.manual_seed(0)
        try:
            pipe.send((False, function(rank, *args)))
        except BaseException:
            pipe.send((True, f"rank {rank}: {traceback.format_exc()}"))
    dist.destroy_process_group()
