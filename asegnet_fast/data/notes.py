"""What a user must be told about files."""

from __future__ import annotations


class Notes:
    """Remarks on files; the same remark on several becomes one line."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}
        self._values: dict[str, list[float]] = {}

    def add(self, remark: str, file: str, values: tuple[float, ...] = ()) -> None:
        """Adds a remark; `values` are told as their range over all its files."""
        files = self._files.setdefault(remark, [])
        if file not in files:
            files.append(file)
        self._values.setdefault(remark, []).extend(values)

    def lines(self, total: int, what: str = "images") -> list[str]:
        """The remarks, one line each.

        Args:
            total: how many files there were.
            what: how they are called where a remark is on all of them.
        """
        told = []
        for remark, files in self._files.items():
            values = self._values[remark]
            range_told = f"values {min(values):g} to {max(values):g} " if values else ""
            told.append(f"{_named(files, total, what)}: {range_told}{remark}")
        return told


def _named(files: list[str], total: int, what: str) -> str:
    if len(files) == 1:
        return files[0]
    if len(files) == total:
        return f"all {total} {what}"
    shown = ", ".join(files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"
