"""Markdown tables of the figures in the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import NamedTuple

from benchmarks.records import Records, Spread


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


class Column(NamedTuple):
    """A figure of one case, for each candidate."""

    title: str
    case: str
    figure: str = "rate"
    """Two figures with a slash between them share a cell. A `share` is shown in percent."""
    scale: float = 1.0
    over: str = ""
    """Divide by this candidate's figure, round by round."""
    minus: str = ""
    """Subtract this candidate's figure, round by round."""
    times: str = ""
    """Divide this candidate's figure by it, round by round."""

    def cell(self, records: Records, benchmark: str, who: str) -> str:
        if who in (self.minus, self.times):
            return ""
        if self.over:
            return ranged(records.ratio(benchmark, self.case, who, self.over, self.figure))
        if self.times:
            return ranged(records.ratio(benchmark, self.case, self.times, who, self.figure))
        if self.minus:
            return number(
                records.difference(benchmark, self.case, who, self.minus, self.figure), self.scale
            )
        show = {"share": percent, "handl": whole}.get(self.figure[:5], number)
        return " / ".join(
            show(records.spread(benchmark, self.case, who, figure), self.scale)
            for figure in self.figure.split("/")
        )


def grid(
    records: Records, benchmark: str, title: str, columns: Sequence[Column], note: str = ""
) -> Table:
    """A table with a row for each candidate that was measured in one of these cases."""
    cases = {column.case for column in columns}
    everybody = [
        who
        for who in records.who(benchmark)
        if any(who in records.who(benchmark, c) for c in cases)
    ]
    rows = [(who, *(c.cell(records, benchmark, who) for c in columns)) for who in everybody]
    return Table(title, ("", *(column.title for column in columns)), rows, note)


def number(spread: Spread | None, scale: float = 1.0) -> str:
    """The median, with three digits or in whole units: `12,340`, `4.7`, `0.153`."""
    return "–" if spread is None else digits(spread.median * scale)


def whole(spread: Spread | None, scale: float = 1.0) -> str:
    """The median of a count."""
    return "–" if spread is None else f"{spread.median * scale:,.0f}"


def percent(spread: Spread | None, scale: float = 1.0) -> str:
    """The median in percent, rounded down, so that 100 % means all."""
    return "–" if spread is None else f"{floor(spread.median * scale * 1000) / 10:g} %"


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
