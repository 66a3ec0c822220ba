"""Tables: the same on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.records import Spread


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        lines = [
            f"**{self.title}**",
            "",
            _line(self.columns),
            _line(("---", *("---:" for _ in self.columns[1:]))),
            *map(_line, self.rows),
        ]
        return "\n".join([*lines, "", self.note, ""] if self.note else [*lines, ""])

    def show(self, console: Console) -> None:
        table = RichTable(title=self.title, caption=self.note or None, title_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def number(spread: Spread | None) -> str:
    """The median, to three digits or to the unit: `12,340`, `4.7`, `0.153`."""
    return "–" if spread is None else digits(spread.median)


def ranged(spread: Spread | None) -> str:
    """The median, and the extremes in brackets."""
    if spread is None:
        return "–"
    return f"{digits(spread.median)} ({digits(spread.low)}–{digits(spread.high)})"


def digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{round(value, -1 if abs(value) >= 1_000 else 0):,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
