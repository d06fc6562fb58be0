"""Writing a data file whole or not at all, with the data package's own complaint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asegnet_fast import files
from asegnet_fast.data.errors import DataError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """`asegnet_fast.files.replacing`, whose failure to write is a `DataError`."""
    try:
        with files.replacing(Path(path)) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"{path}: expected a place to write to, got {error.strerror or error}") from None
