"""Processes that count, and that work in slots, on one real Redis."""

from __future__ import annotations

import time
from collections import Counter
from itertools import combinations
from multiprocessing.context import ForkServerProcess

import pytest
import redis

from bot_ratelimit import Algorithm, Limit
from tests import slot_worker, worker
from tests.processes import FORKS
from tests.servers import Server
from tests.slot_worker import LOG
from tests.worker import BURST, DECISIONS, USERS, Report, Turns

LIMITS = {"5/60s": 5, "7/60s sliding": 7, "3/60s burst 3": 3}


def work_together(server: Server, *skews: float) -> list[Report]:
    """Start processes at the same moment and return their reports."""
    ready, reports = FORKS.Barrier(len(skews)), FORKS.SimpleQueue()
    running = [
        FORKS.Process(target=worker.run, args=(server.port, skew, [*LIMITS], ready, reports))
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


MILLISECOND = 0.001
"""How exactly Redis ends the life of a key."""


def hits_and_refunds(client: redis.Redis) -> tuple[list[float], list[float]]:
    """When hits were granted, and when some were refunded, by Redis's clock in the decision."""
    granted, refunded = [], []
    for line in client.lrange(DECISIONS, 0, -1):
        seconds, micros, wait, kind, *_ = line.decode().split()
        moment = int(seconds) + int(micros) / 1e6
        if "-" in kind:
            refunded.append(moment)
        elif "?" not in kind and wait == "0":
            granted.append(moment)
    return granted, refunded


def assert_never_exceeded(text: str, moments: list[float]) -> None:
    """Check every window of the limit, or every stretch of time for a bucket."""
    limit = Limit.parse(text)
    period = limit.period - MILLISECOND
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        for (i, first), (j, last) in combinations(enumerate(moments), 2):
            gained = (last - first + MILLISECOND) * limit.amount / limit.period
            assert j - i + 1 <= limit.capacity + gained
    elif limit.algorithm is Algorithm.SLIDING_WINDOW:
        for first, too_many in zip(moments, moments[limit.amount :], strict=False):
            assert too_many - first >= period
    else:
        begins = 0  # a fixed window begins with its first hit
        for i, moment in enumerate(moments):
            begins = i if moment - moments[begins] >= period else begins
            assert i - begins < limit.amount


@pytest.mark.parametrize("limit", ["20/500ms", "20/500ms sliding", "40/s burst 5"])
def test_waiters_of_three_processes_share_a_budget(server: Server, limit: str) -> None:
    """95 % of a budget is used, never more; nobody is skipped, and no grant lacks its waiter."""
    seconds, rate = 2.5, 40
    ready, reports = FORKS.Barrier(3), FORKS.SimpleQueue()
    running = [
        FORKS.Process(target=worker.take_turns, args=(server.port, limit, seconds, ready, reports))
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
        moments, refunds = hits_and_refunds(client)
    found: list[Turns] = [reports.get() for _ in running]
    reports.close()
    assert [turns.sources for turns in found] == [{"redis"}] * 3
    # Counted by Redis's clock. A process notices a grant later, most of all on a busy machine: by
    # its own clock, grants of the window before or after may seem to be in the same period.
    # What was refunded as the waiters were cancelled may be granted once more.
    assert_never_exceeded(limit, [each for each in moments if not refunds or each < refunds[0]])
    granted = sum(moment < moments[0] + seconds for moment in moments)
    stalled = min(turns.stalled for turns in found)  # one process that runs uses all of it
    assert granted >= 0.95 * rate * (seconds - stalled)
    assert calls <= 6 * len(moments)  # for each unit every process asks, and the next waiter
    # Every grant had a waiter, or was returned since its waiter was cancelled.
    assert sum(len(turns.order) for turns in found) == len(moments) - len(refunds)
    for turns in found:
        assert turns.order == list(range(len(turns.order)))  # no waiter was skipped


TASKS = 67  # of each of three processes


def start(server: Server, log: Server, count: int) -> list[ForkServerProcess]:
    started = [
        FORKS.Process(target=slot_worker.run, args=(server.port, log.port, TASKS))
        for _ in range(count)
    ]
    for process in started:
        process.start()
    return started


def until(log: redis.Redis, entries: int) -> None:
    """Wait until this much work is done."""
    deadline = time.monotonic() + 30
    while log.llen(LOG) < entries:
        assert time.monotonic() < deadline, "nothing goes on"
        time.sleep(0.005)


def most_at_once(events: list[str]) -> int:
    """The largest number of tasks that worked at the same time."""
    working: set[str] = set()
    most = 0
    for event in events:
        what, _, who = event.partition(" ")
        if what == "begin":
            working.add(who)
        elif what == "end":
            working.discard(who)
        else:
            working = {each for each in working if each.split()[0] != who}
        most = max(most, len(working))
    return most


@pytest.mark.parametrize("kind", ["own_server", "lasting_server"])
def test_never_four_at_once(
    kind: str, redis_server: Server, request: pytest.FixtureRequest
) -> None:
    """200 tasks in three processes with three slots, one of them killed, server restarted, which
    remembers or forgets. The slots of the killed one are free when their leases end."""
    server: Server = request.getfixturevalue(kind)
    with redis.Redis(port=redis_server.port, decode_responses=True) as log:
        log.flushall()
        killed, *others = start(server, redis_server, 3)
        until(log, 60)
        killed.kill()
        killed.join(10)
        log.rpush(LOG, f"killed {killed.pid}")
        others += start(server, redis_server, 1)
        until(log, 150)
        server.kill()
        time.sleep(0.1)
        server.start()
        for process in others:
            process.join(60)
            assert process.exitcode == 0
            process.close()
        events = log.lrange(LOG, 0, -1)
    assert sum(event.startswith("end") for event in events) >= 3 * TASKS
    assert most_at_once(events) == 3
    with redis.Redis(port=server.port) as client:
        assert all(client.pttl(key) > 0 for key in client.scan_iter())
