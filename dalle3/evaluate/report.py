"""Reports of evaluations: a JSON file that grows split by split, and the table that people read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle3.errors import ConfigError
from dalle3.files import whole_file

Row = dict[str, float | int | str]


class Report:
    """The rows measured for each split.

    Args:
        about: what was evaluated and how; a file that says otherwise is not continued.
        path: of the JSON file, written at once and anew after each split; None keeps nothing.
    Raises:
        ConfigError: the file holds another evaluation, or something else.
        OutputError: the file cannot be written.
    """

    def __init__(self, about: dict[str, Any], path: Path | None) -> None:
        self.about, self.path = json.loads(json.dumps(about)), path
        self.splits: dict[str, list[Row]] = {}
        self.data: dict[str, str] = {}  # where each split was read from
        if path is not None and path.exists():
            self._read(path)
        self._write()

    def has(self, split: str, data: str) -> bool:
        """Whether the rows of a split are there.

        Raises:
            ConfigError: they are, and from other data.
        """
        before = self.data.get(split, data)
        if before != data:
            raise ConfigError(
                f"{self.path} holds figures of {split} from {before}; name the other one, as in --data {split}2={data}"
            )
        return split in self.splits

    def add(self, split: str, data: str, rows: list[Row]) -> None:
        """Notes the rows of a split that was read from `data`.

        Raises:
            OutputError: the file cannot be written.
        """
        self.splits[split], self.data[split] = rows, data
        self._write()

    def lines(self, split: str) -> Iterator[str]:
        """The table of a split."""
        rows = self.splits[split]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = [columns, *([_show(row.get(name, "")) for name in columns] for row in rows)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
        yield split
        for line in cells:
            yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))

    def _write(self) -> None:
        if self.path is not None:
            with whole_file(self.path) as partial:
                stored = {"about": self.about, "data": self.data, "splits": self.splits}
                partial.write_text(json.dumps(stored, indent=2) + "\n")

    def _read(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            before, splits, data = stored["about"], stored["splits"], stored.get("data", {})
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is no report of `dalle3 evaluate`; name another --json") from None
        changed = sorted(key for key in {*before, *self.about} if before.get(key) != self.about.get(key))
        if changed:
            raise ConfigError(
                f"{path} reports another evaluation ({', '.join(changed)} differ); name another --json, or remove it"
            )
        self.splits, self.data = splits, data


def _show(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
