"""Records: what was measured, and medians and ratios of it with their spread."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple


class Record(NamedTuple):
    """One contestant in one round of one case."""

    concern: str
    case: str
    who: str
    round: int
    figures: dict[str, float]


class Absence(NamedTuple):
    """Who did not take part, in what, and why."""

    concern: str
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
    """Everything that a run found out."""

    records: list[Record] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    def add(self, found: Iterable[Record | Absence]) -> None:
        for each in found:
            if isinstance(each, Record):
                self.records.append(each)
            elif each not in self.absences:
                self.absences.append(each)

    def has(self, concern: str) -> bool:
        return any(record.concern == concern for record in self.records)

    def who(self, concern: str, case: str | None = None) -> list[str]:
        """The contestants, in the order in which they started first."""
        found = [r for r in self.records if r.concern == concern and case in (None, r.case)]
        return list(dict.fromkeys(record.who for record in found))

    def cases(self, concern: str) -> list[str]:
        found = (record.case for record in self.records if record.concern == concern)
        return list(dict.fromkeys(found))

    def spread(self, concern: str, case: str, who: str, figure: str) -> Spread | None:
        return Spread.of(list(self._rounds(concern, case, who, figure).values()))

    def ratio(
        self, concern: str, case: str, who: str, to: str, figure: str = "rate", at: str = ""
    ) -> Spread | None:
        """How many times the other's figure, in case `at` if given: the ratios of each round."""
        ours = self._rounds(concern, case, who, figure)
        theirs = self._rounds(concern, at or case, to, figure)
        return Spread.of([ours[i] / theirs[i] for i in ours if theirs.get(i)])

    def difference(self, concern: str, case: str, who: str, to: str, figure: str) -> Spread | None:
        """How much more than the other's figure: from the differences within each round."""
        ours = self._rounds(concern, case, who, figure)
        theirs = self._rounds(concern, case, to, figure)
        return Spread.of([ours[i] - theirs[i] for i in ours if i in theirs])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Records:
        saved = json.loads(path.read_text())
        return cls(
            [Record(*each) for each in saved["records"]],
            [Absence(*each) for each in saved["absences"]],
            saved["machine"],
        )

    def _rounds(self, concern: str, case: str, who: str, figure: str) -> dict[int, float]:
        return {
            record.round: record.figures[figure]
            for record in self.records
            if record[:3] == (concern, case, who) and figure in record.figures
        }
