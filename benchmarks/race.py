"""Races: everybody in turn, round after round, so that a busy moment hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from benchmarks import handmade, ours, peers
from benchmarks.contestant import Entry, UnableError
from benchmarks.measure import Figures
from benchmarks.records import Absence, Record, Records
from benchmarks.server import Server
from benchmarks.tables import Table

ON_REDIS: Final[Mapping[str, Entry]] = {
    ours.NAME: ours.OnRedis,
    "limits": peers.LimitsOnRedis,
    "aiogram-sentinel": peers.SentinelOnRedis,
    "hand-written MULTI": handmade.Multi,
    "hand-written EVALSHA": handmade.Script,
    "bare INCR": handmade.Incr,
}
IN_MEMORY: Final[Mapping[str, Entry]] = {
    ours.NAME: ours.InMemory,
    "limits": peers.LimitsInMemory,
    "aiogram-sentinel": peers.SentinelInMemory,
}

Found = Iterator["Record | Absence"]


@dataclass(frozen=True)
class Run:
    """What all concerns of a run have in common."""

    server: Server
    rounds: int
    seconds: float
    """How long one measurement takes."""
    quick: bool

    def fewer(self, rounds: float, seconds: float = 1.0) -> Run:
        """With this share of the rounds, one at least, and of the seconds."""
        return replace(
            self, rounds=max(1, round(self.rounds * rounds)), seconds=self.seconds * seconds
        )


class Concern(NamedTuple):
    """Something that is measured, and how it is shown."""

    name: str
    measure: Callable[[Run], Found]
    tables: Callable[[Records], list[Table]]


def race(
    run: Run,
    concern: str,
    cases: Mapping[str, Sequence[str]],
    measure: Callable[[str, str], Figures],
) -> Found:
    """Measure every starter of every case once a round; who fails is out of that case.

    Args:
        cases: Who starts, by case.
        measure: Takes the case and the starter.
    """
    out: set[tuple[str, str]] = set()
    for n in range(run.rounds):
        for case, starters in cases.items():
            at = n % len(starters)  # another order, so that nobody always has the same neighbour
            for who in (*starters[at:], *starters[:at]):
                if (case, who) in out:
                    continue
                try:
                    figures = measure(case, who)
                except Exception as error:
                    out.add((case, who))
                    yield Absence(f"{concern}: {case}", who, reason(error))
                else:
                    yield Record(concern, case, who, n, figures)


def reason(error: Exception) -> str:
    """Why somebody is out, in a line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or '?').partition('.')[0]} is not installed"
    return str(error) if isinstance(error, UnableError) else f"{type(error).__name__}: {error}"
