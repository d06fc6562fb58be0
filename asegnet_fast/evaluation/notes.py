"""Remarks on files; the same remark on several becomes one line."""

from __future__ import annotations


class Notes:
    """Collects remarks while cases are measured."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}

    def add(self, remark: str, file: str | None = None) -> None:
        """Add a remark on a file, or on the whole."""
        files = self._files.setdefault(remark, [])
        if file is not None and file not in files:
            files.append(file)

    def lines(self) -> list[str]:
        """One line for each remark."""
        lines = []
        for remark, files in self._files.items():
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            lines.append(f"{files[0]}{more}: {remark}" if files else remark)
        return lines
