"""Backoff: processes that wait for the same units take turns, in moved time."""

from __future__ import annotations

import heapq
import random
from itertools import pairwise
from typing import NamedTuple

import pytest

from bot_ratelimit import Limit, MemoryStorage
from bot_ratelimit.limiter.backoff import Backoff
from bot_ratelimit.storage.base import Count

NEAR = 0.0005
"""The round trip in seconds of a process beside the server, and how much it varies."""


class Shared(NamedTuple):
    """How processes shared the units of a limit."""

    granted: list[tuple[float, int]]
    """When each unit was granted, and to which process."""
    asked: int

    def count(self, process: int) -> int:
        return sum(owner == process for _, owner in self.granted)

    def longest(self, process: int) -> int:
        """How many units in a row the others got."""
        own = [-1, *(i for i, (_, owner) in enumerate(self.granted) if owner == process)]
        return max(after - before for before, after in pairwise([*own, len(self.granted)]))

    @property
    def used(self) -> float:
        """Which part of the units was used."""
        (first, _), *_, (last, _) = self.granted
        return (len(self.granted) - 1) / (last - first)


def share(
    limit: str, round_trips: list[float], *, varies: float = NEAR, units: int = 1_000, seed: int = 1
) -> Shared:
    """Let processes, each with its distance from the server, always wait for one unit a second."""
    chance, now = random.Random(seed), 0.0
    storage, charges = MemoryStorage(clock=lambda: now), [Count("key", Limit.parse(limit))]
    backoffs = [Backoff(random.Random(f"{seed} {i}")) for i in range(len(round_trips))]
    shared = Shared([], 0)

    def way(process: int) -> float:
        return round_trips[process] / 2 + chance.expovariate(1 / varies)

    questions = [(way(i), i, 0.0) for i in range(len(round_trips))]  # arrives, from, was sent
    while len(shared.granted) < units:
        now, process, sent = heapq.heappop(questions)
        (verdict,) = storage.decide(charges)
        shared = shared._replace(asked=shared.asked + 1)
        wait, backoff = (verdict.wait or verdict.reset) / 1_000_000, backoffs[process]
        answered = now + way(process)
        backoff.answered(answered - sent)
        if verdict.wait:
            backoff.refused(wait, 1.0)
        else:
            shared.granted.append((now, process))
            backoff.granted()
        asks = answered + backoff.pause(wait, 1.0)
        heapq.heappush(questions, (asks + way(process), process, asks))
    return shared


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", ["1/s", "1/s sliding", "1/s burst 1"])
def test_three_processes_take_turns(limit: str, seed: int) -> None:
    """No process waits for more than 15 units of 1,000, at 2.4 commands for each unit."""
    shared = share(limit, [NEAR] * 3, seed=seed)
    assert max(map(shared.longest, range(3))) <= 15
    assert min(map(shared.count, range(3))) >= 300
    assert shared.asked <= 2.4 * 1_000
    assert shared.used >= 0.98


@pytest.mark.parametrize("distance", [0.02, 0.05, 0.2])
def test_a_distant_process_does_not_starve(distance: float) -> None:
    """A process that is far from the server gets its turn beside two that are near."""
    shared = share("1/s", [NEAR, NEAR, distance])
    assert shared.count(2) >= 200
    assert shared.longest(2) <= 60
    assert shared.asked <= 2.7 * 1_000


def test_slow_answers_spread_the_grants_too() -> None:
    """With answers that take 20 ms more or less, nobody waits for more than 40 units."""
    shared = share("1/s", [NEAR] * 3, varies=0.01)
    assert max(map(shared.longest, range(3))) <= 40
    assert min(map(shared.count, range(3))) >= 280


def test_ten_processes_take_turns() -> None:
    """Ten processes each get about a tenth, at 6.6 commands for each unit."""
    shared = share("1/s", [NEAR] * 10)
    assert max(map(shared.longest, range(10))) <= 60
    assert min(map(shared.count, range(10))) >= 80
    assert shared.asked <= 6.6 * 1_000


def test_a_process_alone_asks_once_for_each_unit() -> None:
    """Without competition, every unit is used, with one command."""
    shared = share("1/s", [NEAR])
    assert shared.asked == 1_000
    assert shared.used >= 0.99


def test_a_process_that_joins_later_gets_its_turn() -> None:
    """A process that has had all units so far gives way to one that is new."""
    old = Backoff(random.Random(1))
    for _ in range(100):
        old.granted()
        old.pause(1.0, 1.0)
    new = Backoff(random.Random(2))
    pauses = []
    for _ in range(10):
        old.granted()
        new.refused(1.0, 1.0)
        pauses.append((new.pause(1.0, 1.0) % 1, old.pause(1.0, 1.0) % 1))
    assert all(of_new < of_old for of_new, of_old in pauses[-5:])


def test_a_pause_never_exceeds_what_the_caller_can_wait() -> None:
    """Neither the jitter nor a skipped unit delays a waiter past its time-out."""
    backoff = Backoff(random.Random(1))
    for spare in (0.0, 0.001, 0.5, 1.5, 2.5) * 20:
        backoff.refused(1.0, 1.0)
        assert 1.0 <= backoff.pause(1.0, 1.0, spare) <= 1.0 + spare
