"""Comparison: measures all candidates round after round, so that load affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from benchmarks import hand_written, ours, peers
from benchmarks.candidate import Entry, UnableError
from benchmarks.measure import Figures
from benchmarks.records import Record, Records, Skipped
from benchmarks.server import Server
from benchmarks.tables import Table

ON_REDIS: Final[Mapping[str, Entry]] = {
    ours.NAME: ours.OnRedis,
    "limits": peers.LimitsOnRedis,
    "aiogram-sentinel": peers.SentinelOnRedis,
    "hand-written MULTI": hand_written.Multi,
    "hand-written EVALSHA": hand_written.Script,
    "bare INCR": hand_written.Incr,
}
IN_MEMORY: Final[Mapping[str, Entry]] = {
    ours.NAME: ours.InMemory,
    "limits": peers.LimitsInMemory,
    "aiogram-sentinel": peers.SentinelInMemory,
}

Measurements = Iterator["Record | Skipped"]


@dataclass(frozen=True)
class Run:
    """What all benchmarks of a run share."""

    server: Server
    rounds: int
    seconds: float
    """The duration of one measurement."""
    quick: bool

    def fewer(self, rounds: float, seconds: float = 1.0) -> Run:
        """The same run with this share of the rounds (at least one) and of the duration."""
        return replace(
            self, rounds=max(1, round(self.rounds * rounds)), seconds=self.seconds * seconds
        )


class Benchmark(NamedTuple):
    """Something that is measured, and the tables that show it."""

    name: str
    measure: Callable[[Run], Measurements]
    tables: Callable[[Records], list[Table]]


def compare(
    run: Run,
    benchmark: str,
    cases: Mapping[str, Sequence[str]],
    measure: Callable[[str, str], Figures],
) -> Measurements:
    """Measure each candidate of each case once per round; one that fails is dropped from the case.

    Args:
        cases: The candidates by case.
        measure: Takes the case and the candidate.
    """
    out: set[tuple[str, str]] = set()
    for n in range(run.rounds):
        for case, starters in cases.items():
            at = n % len(starters)  # rotated, so that the neighbours change
            for who in (*starters[at:], *starters[:at]):
                if (case, who) in out:
                    continue
                try:
                    figures = measure(case, who)
                except Exception as error:
                    out.add((case, who))
                    yield Skipped(f"{benchmark}: {case}", who, reason(error))
                else:
                    yield Record(benchmark, case, who, n, figures)


def reason(error: Exception) -> str:
    """Why a candidate was dropped, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or '?').partition('.')[0]} is not installed"
    return str(error) if isinstance(error, UnableError) else f"{type(error).__name__}: {error}"
