"""Several processes that count on one real Redis."""

from __future__ import annotations

import multiprocessing
from collections import Counter

import pytest
import redis

from tests import worker
from tests.servers import Server
from tests.worker import BURST, USERS, Report, Turns

NOTICED = 0.1
"""Seconds after which a process has noticed a grant, also on a busy machine."""
LIMITS = {"5/60s": 5, "7/60s sliding": 7, "3/60s burst 3": 3}

# A fork server, because importing aiogram takes a process longer than all it does here.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.worker"])


def work_together(server: Server, *skews: float) -> list[Report]:
    """Start processes at the same moment and return their reports."""
    ready, reports = processes.Barrier(len(skews)), processes.SimpleQueue()
    running = [
        processes.Process(target=worker.run, args=(server.port, skew, [*LIMITS], ready, reports))
        for skew in skews
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
        process.close()
    found = [reports.get() for _ in running]
    reports.close()
    return found


@pytest.fixture
def server(redis_server: Server) -> Server:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return redis_server


def everybody(amounts: dict[str, int]) -> Counter[tuple[str, int]]:
    return Counter({(limit, user): n for limit, n in amounts.items() for user in range(USERS)})


def test_three_processes_let_exactly_the_limit_through(server: Server) -> None:
    """With three instances under one burst each of 200 users gets exactly the limit."""
    reports = work_together(server, 0, 0, 0)
    assert [report.sources for report in reports] == [{"redis"}] * 3
    assert sum((report.allowed for report in reports), Counter()) == everybody(LIMITS)


@pytest.mark.parametrize("skews", [(0, 3_600), (3_600, 0)], ids=["ahead", "behind"])
def test_instances_whose_clocks_differ_by_an_hour_agree(
    server: Server, skews: tuple[float, float]
) -> None:
    """What one instance allows counts for the other, whatever their clocks say."""
    (first,), (second,) = (work_together(server, skew) for skew in skews)
    assert second.clock - first.clock == pytest.approx(skews[1] - skews[0], abs=60)
    assert first.allowed == everybody({limit: min(n, BURST) for limit, n in LIMITS.items()})
    assert first.allowed + second.allowed == everybody(LIMITS)
    assert 40 < second.longest <= 60


@pytest.mark.parametrize("limit", ["20/500ms", "20/500ms sliding", "40/s burst 5"])
def test_waiters_of_three_processes_share_a_budget(server: Server, limit: str) -> None:
    """95 % of a budget is used, never more, in turn, with 2.5 commands per grant."""
    seconds, budget = 2.5, 40 * 2.5
    ready, reports = processes.Barrier(3), processes.SimpleQueue()
    running = [
        processes.Process(
            target=worker.take_turns, args=(server.port, limit, seconds, ready, reports)
        )
        for _ in range(3)
    ]
    with redis.Redis(port=server.port) as client:
        client.config_resetstat()
        for process in running:
            process.start()
        for process in running:
            process.join(60)
            assert process.exitcode == 0
            process.close()
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    found: list[Turns] = [reports.get() for _ in running]
    reports.close()
    moments = sorted(moment for turns in found for moment in turns.granted)
    granted = sum(moment < moments[0] + seconds for moment in moments)
    # A process may be late to notice the very first grant, and then sees the next window's too.
    surely = sum(moment < moments[0] + seconds - NOTICED for moment in moments)
    burst = 5 if "burst" in limit else 0
    assert granted >= 0.95 * budget
    assert surely <= budget + burst
    assert calls <= 2.5 * len(moments)
    for turns in found:
        assert turns.order == sorted(turns.order)
        assert turns.order == list(range(len(turns.order)))  # no waiter was skipped
        assert len(turns.order) > 0.1 * granted
