"""Slots in real processes on a real Redis, with killed processes and servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import redis

from tests import slot_worker
from tests.processes import FORKS
from tests.servers import Server, running
from tests.slot_worker import LOG

TASKS = 67  # of each of three processes


@pytest.fixture(params=["it remembers", "it forgets"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A separate server, with or without persistence over its restart."""
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    with running(
        "redis-server", tmp_path, *options if request.param == "it remembers" else []
    ) as server:
        yield server


@pytest.fixture
def log(redis_server: Server) -> Iterator[redis.Redis]:
    """The file in which the processes log their work, in one common order."""
    with redis.Redis(port=redis_server.port, decode_responses=True) as log:
        log.flushall()
        yield log


def start(server: Server, log: redis.Redis, count: int) -> list[ForkServerProcess]:
    log_port = int(log.connection_pool.connection_kwargs["port"])
    started = [
        FORKS.Process(target=slot_worker.run, args=(server.port, log_port, TASKS))
        for _ in range(count)
    ]
    for process in started:
        process.start()
    return started


def kill(process: ForkServerProcess, log: redis.Redis) -> None:
    process.kill()
    process.join(10)
    log.rpush(LOG, f"killed {process.pid}")


def finish(process: ForkServerProcess) -> None:
    process.join(60)
    assert process.exitcode == 0
    process.close()


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


def test_never_four_at_once(server: Server, log: redis.Redis) -> None:
    """200 tasks in three processes with three slots, one of them killed, server restarted."""
    first, second, third = start(server, log, 3)
    until(log, 60)
    kill(first, log)
    (fourth,) = start(server, log, 1)
    until(log, 150)
    server.kill()
    time.sleep(0.1)
    server.start()
    for process in (second, third, fourth):
        finish(process)
    events = log.lrange(LOG, 0, -1)
    ended = [event for event in events if event.startswith("end")]
    assert len(ended) >= 3 * TASKS
    assert most_at_once(events) == 3
    with redis.Redis(port=server.port) as client:
        assert all(client.pttl(key) > 0 for key in client.scan_iter())


def test_the_slots_of_a_killed_process_are_free_within_the_lease(
    redis_server: Server, log: redis.Redis
) -> None:
    """Other processes continue as soon as the lease of the killed one ends."""
    (first,) = start(redis_server, log, 1)
    until(log, 20)
    kill(first, log)
    began = time.monotonic()
    (second,) = start(redis_server, log, 1)
    finish(second)
    events = log.lrange(LOG, 0, -1)
    assert most_at_once(events) == 3
    assert time.monotonic() - began < 1 + 5 + TASKS * slot_worker.WORK
