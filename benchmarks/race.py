"""Races: everybody in turn, round after round, so that the machine's moods hit all alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from benchmarks import handmade, ours, peers
from benchmarks.contestant import Entry, Setting, UnableError
from benchmarks.measure import Figures, decide
from benchmarks.records import Absence, Record
from benchmarks.server import Server

ON_REDIS: Final[Mapping[str, Entry]] = {
    ours.NAME: ours.OnRedis,
    "limits": peers.LimitsOnRedis,
    "throttled-py": peers.ThrottledOnRedis,
    "pyrate-limiter": peers.PyrateOnRedis,
    "aiogram-sentinel": peers.SentinelOnRedis,
    "hand-written MULTI": handmade.Multi,
    "hand-written EVALSHA": handmade.Script,
    "bare INCR": handmade.Incr,
}
IN_MEMORY: Final[Mapping[str, Entry]] = {
    ours.NAME: ours.InMemory,
    "limits": peers.LimitsInMemory,
    "throttled-py": peers.ThrottledInMemory,
    "pyrate-limiter": peers.PyrateInMemory,
    "aiogram-sentinel": peers.SentinelInMemory,
}

Starter = TypeVar("Starter")


@dataclass(frozen=True)
class Run:
    """What all concerns of a run have in common."""

    server: Server
    rounds: int
    seconds: float
    """How long one measurement takes."""
    quick: bool
    tell: Callable[[str], None]
    """Takes a line about what is going on."""


def rotated(starters: Sequence[Starter], by: int) -> list[Starter]:
    """The same in another order, lest anybody always run after the same neighbour."""
    at = by % len(starters) if starters else 0
    return [*starters[at:], *starters[:at]]


def race(
    run: Run,
    concern: str,
    cases: Mapping[str, Sequence[str]],
    measure: Callable[[str, str], Figures],
    rounds: int | None = None,
) -> Iterator[Record | Absence]:
    """Measure every starter of every case once a round; who fails is out of the concern's races.

    Args:
        cases: Who starts, by case.
        measure: Takes the case and the starter.
        rounds: Instead of the run's.
    """
    out: set[tuple[str, str]] = set()
    for n in range(rounds or run.rounds):
        for case, starters in cases.items():
            for who in rotated(starters, n):
                if (case, who) in out:
                    continue
                run.tell(f"{concern}, round {n + 1}: {case}, {who}")
                try:
                    figures = measure(case, who)
                except Exception as error:
                    out.add((case, who))
                    yield Absence(f"{concern}: {case}", who, reason(error))
                else:
                    yield Record(concern, case, who, n, figures)


def decisions(
    run: Run,
    concern: str,
    settings: Mapping[str, tuple[Setting, Mapping[str, Entry]]],
    *,
    turning: str = "",
) -> Iterator[Record | Absence]:
    """Race the contestants in this process, each in an event loop of its own.

    Args:
        settings: By case, what is asked and who starts.
        turning: In cases with this in their name the loop turns after each decision.
    """

    def measure(case: str, who: str) -> Figures:
        setting, entries = settings[case]
        turn = bool(turning) and turning in case
        figures = asyncio.run(decide(entries[who], setting, run.seconds, run.server, turn=turn))
        if entries is IN_MEMORY:
            del figures["server_us"]
        return figures

    return race(run, concern, {case: list(on) for case, (_, on) in settings.items()}, measure)


def reason(error: Exception) -> str:
    """Why somebody is out, in a line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or '?').partition('.')[0]} is not installed"
    return str(error) if isinstance(error, UnableError) else f"{type(error).__name__}: {error}"
