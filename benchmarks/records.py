"""Records: the measurements, with medians and ratios and their spread."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple


class Record(NamedTuple):
    """The measurement of one candidate in one round of one case."""

    benchmark: str
    case: str
    who: str
    round: int
    figures: dict[str, float]


class Skipped(NamedTuple):
    """A candidate that was not measured, in which benchmark, and why."""

    benchmark: str
    who: str
    reason: str


class Spread(NamedTuple):
    """The median over the rounds, and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        return cls(median(values), min(values), max(values)) if values else None


@dataclass
class Records:
    """All measurements of a run."""

    records: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    def add(self, found: Iterable[Record | Skipped]) -> None:
        for each in found:
            if isinstance(each, Record):
                self.records.append(each)
            elif each not in self.skipped:
                self.skipped.append(each)

    def has(self, benchmark: str) -> bool:
        return any(record.benchmark == benchmark for record in self.records)

    def who(self, benchmark: str, case: str | None = None) -> list[str]:
        """The candidates, in the order in which they were first measured."""
        found = [r for r in self.records if r.benchmark == benchmark and case in (None, r.case)]
        return list(dict.fromkeys(record.who for record in found))

    def cases(self, benchmark: str) -> list[str]:
        found = (record.case for record in self.records if record.benchmark == benchmark)
        return list(dict.fromkeys(found))

    def spread(self, benchmark: str, case: str, who: str, figure: str) -> Spread | None:
        return Spread.of(list(self._rounds(benchmark, case, who, figure).values()))

    def ratio(
        self, benchmark: str, case: str, who: str, to: str, figure: str = "rate", at: str = ""
    ) -> Spread | None:
        """The ratio to another candidate's figure, in case `at` if given, calculated per round."""
        ours = self._rounds(benchmark, case, who, figure)
        theirs = self._rounds(benchmark, at or case, to, figure)
        return Spread.of([ours[i] / theirs[i] for i in ours if theirs.get(i)])

    def difference(
        self, benchmark: str, case: str, who: str, to: str, figure: str
    ) -> Spread | None:
        """The difference to another candidate's figure, calculated per round."""
        ours = self._rounds(benchmark, case, who, figure)
        theirs = self._rounds(benchmark, case, to, figure)
        return Spread.of([ours[i] - theirs[i] for i in ours if i in theirs])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Records:
        saved = json.loads(path.read_text())
        return cls(
            [Record(*each) for each in saved["records"]],
            [Skipped(*each) for each in saved["skipped"]],
            saved["machine"],
        )

    def _rounds(self, benchmark: str, case: str, who: str, figure: str) -> dict[int, float]:
        return {
            record.round: record.figures[figure]
            for record in self.records
            if record[:3] == (benchmark, case, who) and figure in record.figures
        }
