"""Writing a file so that it is either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asegnet_fast.data.errors import DataError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to, then renames it; on an error `path` stays as it was.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    # The suffix stays, because it decides how some writers write.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: expected a place to write to, came {error.strerror or error}") from None
