"""What the program shows while it trains: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from torch import Tensor

REFRESH_SECONDS = 0.2  # reading a loss from a GPU waits for it, so not at every step
LINE_SECONDS = 10.0


class Reporter:
    """Shows rows, folds, epochs and steps with loss and learning rate.

    Args:
        console: where to write; a console that is not a terminal gets lines instead of bars.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._shown = 0.0

    def __enter__(self) -> Reporter:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}

    def say(self, text: str) -> None:
        """Write one line above the bars."""
        self.console.print(text, markup=False, soft_wrap=True)

    def folds(self, done: int, total: int, row: str, fold: int | None) -> None:
        """A fold begins: `done` of `total` over all rows lie behind."""
        self._show("folds", row if fold is None else f"{row}, fold {fold}", done, total)

    def epochs(self, done: int, total: int, record: dict[str, Any] | None, name: str) -> None:
        """`done` of `total` epochs of this fold lie behind; `record` is the last one's line of history."""
        scores = f"  test Dice {record['test_dice']:.3f}" if record and "test_dice" in record else ""
        self._show("epochs", f"epoch{scores}", done, total)
        now = time.monotonic()
        if self._bars is None and record is not None and now - self._shown >= LINE_SECONDS and done < total:
            self._shown = now
            self.say(f"{name}  epoch {done}/{total}  loss {record['loss']:.4f}  lr {record['lr']:g}{scores}")

    def step(self, done: int, total: int, loss: Tensor, lr: float) -> None:
        """`done` of `total` steps of this epoch lie behind; `loss` is read only when it is shown."""
        if self._bars is None:
            return
        now = time.monotonic()
        if done < total and now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        self._show("steps", f"step   loss {loss.item():.4f}  lr {lr:g}", done, total)

    def loading(self, done: int, total: int, file: str) -> None:
        """`done` of `total` files are read, `file` the last of them."""
        self._passing("loading", f"reading {file}", done, total)

    def measuring(self, done: int, total: int, case: str) -> None:
        """`done` of `total` cases are measured, `case` the last of them."""
        self._passing("measuring", f"measuring {case}", done, total)

    def _passing(self, task: str, text: str, done: int, total: int) -> None:
        """A bar that goes when it is full."""
        self._show(task, text, done, total)
        if self._bars is not None and done == total:
            self._bars.remove_task(self._tasks.pop(task))

    def volumes(self, done: int, total: int, file: str) -> None:
        """`done` of `total` volumes lie behind; `file` is next."""
        if total > 1:
            self._show("volumes", file, done, total)

    def slices(self, done: int, total: int, file: str) -> None:
        """`done` of `total` slices of this volume are predicted."""
        self._show("slices", f"slices of {file}", done, total)
        if self._bars is not None and done == total:
            self._bars.remove_task(self._tasks.pop("slices"))

    def _show(self, task: str, text: str, done: int, total: int) -> None:
        if self._bars is None:
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(text, total=total)
        self._bars.update(self._tasks[task], description=f"{text:<44.44}", completed=done, total=total)
