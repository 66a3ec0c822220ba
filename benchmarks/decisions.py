"""Decisions: all candidates with 1 to 1,000 at a time, each algorithm, and a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from benchmarks.candidate import Entry, Setting
from benchmarks.comparison import IN_MEMORY, ON_REDIS, Benchmark, Measurements, Run, compare
from benchmarks.measure import Figures, decide
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.server import Server, redis_cluster
from benchmarks.tables import Column, Table, grid

AT_A_TIME: Final = (1, 10, 100, 1_000)
IN_A_LOOP: Final = "memory, the loop never turns"
TURNING: Final = "memory, the loop turns"

KINDS: Final = ("fixed window", "sliding window", "token bucket")
RULES: Final = (1, 4)

ON_CLUSTER: Final = (OURS, "hand-written EVALSHA", "bare INCR")
ONE_SERVER: Final = "one server"
THREE_NODES: Final = "a cluster of three"

Cases = Mapping[str, tuple[Setting, Mapping[str, Entry]]]


def on_redis(at_a_time: int) -> str:
    return f"Redis, {at_a_time} at a time"


def in_process(
    run: Run, benchmark: str, cases: Cases, servers: Mapping[str, Server] = {}
) -> Measurements:
    """Compare the candidates in this process, each in a separate event loop."""

    def measure(case: str, who: str) -> Figures:
        setting, entries = cases[case]
        server = servers.get(case, run.server)
        return asyncio.run(decide(entries[who], setting, run.seconds, server, turn=case == TURNING))

    return compare(run, benchmark, {case: list(on) for case, (_, on) in cases.items()}, measure)


# -------------------------------------------------------------------------------------------------
# Everybody


def _measure(run: Run) -> Measurements:
    redis = {on_redis(n): (Setting(run.server.url, n), ON_REDIS) for n in AT_A_TIME}
    memory = {case: (Setting(run.server.url), IN_MEMORY) for case in (IN_A_LOOP, TURNING)}
    # In short measurements: on a busy machine, measurements close in time are comparable.
    return in_process(run if run.quick else run.fewer(3, 0.4), "decisions", redis | memory)


def _tables(records: Records) -> list[Table]:
    def columns(figure: str, scale: float = 1.0, times: str = "") -> list[Column]:
        return [
            Column(f"{n:,} at a time", on_redis(n), figure, scale, times=times) for n in AT_A_TIME
        ]

    cpu = [
        Column(f"{where}, {n} at a time", on_redis(n), figure)
        for where, figure in (("bot", "cpu_us"), ("Redis", "server_us"))
        for n in (1, 100)
    ]
    memory = [
        Column(title, case, times=times)
        for case, turns in ((IN_A_LOOP, "the loop never turns"), (TURNING, "the loop turns"))
        for title, times in ((turns, ""), (f"{OURS} ÷ it", OURS))
    ]

    def show(title: str, columns: list[Column], note: str = "") -> Table:
        return grid(records, "decisions", title, columns, note)

    return [
        show("Decisions a second on Redis", columns("rate")),
        show(
            f"Decisions a second of {OURS}, in multiples of the others' (range over the rounds)",
            columns("rate", times=OURS),
        ),
        show(
            "Milliseconds until a decision, p50 / p99",
            columns("p50_us/p99_us", 1e-3),
            "At 1,000 at a time this is how long a queue of 1,000 takes. Where p50 and p99 are far "
            "apart, redis-py's blocking pool gives its connections to those who just had one "
            "before those who wait.",
        ),
        show(
            "Microseconds of CPU for a decision",
            cpu,
            "In the bot's process, and in the server, the network stack included.",
        ),
        show(
            "Decisions a second in memory",
            memory,
            "In memory `aiogram-sentinel` counts in a sliding window. Where the loop turns after "
            "each decision, as in a bot, background tasks get to run.",
        ),
    ]


# -------------------------------------------------------------------------------------------------
# Algorithms


def _case(kind: str, rules: int) -> str:
    return f"{kind}, {rules} rule{'s' * (rules > 1)}"


def _measure_algorithms(run: Run) -> Measurements:
    starters = {who: ON_REDIS[who] for who in (OURS, "limits")}
    cases = {
        _case(kind, n): (Setting(run.server.url, 100, kind, n), starters)
        for kind in KINDS
        for n in RULES
    }
    return in_process(run, "algorithms", cases)


def _tables_of_algorithms(records: Records) -> list[Table]:
    columns = [Column(_case(kind, n), _case(kind, n)) for kind in KINDS for n in RULES]
    sizes = [Column(f"{kind}, bytes for a user", _case(kind, 1), "bytes") for kind in KINDS]
    return [
        grid(records, "algorithms", "Decisions a second on Redis, 100 at a time", columns),
        grid(records, "algorithms", "Memory in Redis", sizes),
    ]


# -------------------------------------------------------------------------------------------------
# A cluster


def _measure_cluster(run: Run) -> Measurements:
    with redis_cluster() as nodes:
        starters = {who: ON_REDIS[who] for who in ON_CLUSTER}
        cases = {
            ONE_SERVER: (Setting(run.server.url, 100), starters),
            THREE_NODES: (Setting(nodes.url, 100, cluster=True), starters),
        }
        yield from in_process(run.fewer(1.6), "cluster", cases, {THREE_NODES: nodes})


def _tables_of_cluster(records: Records) -> list[Table]:
    columns = [
        Column(f"{title}, {case}", case, figure)
        for title, figure in (
            ("decisions a second", "rate"),
            ("µs of CPU in the bot", "cpu_us"),
            ("decisions in a command", "per_command"),
            ("commands in a write", "per_read"),
        )
        for case in (ONE_SERVER, THREE_NODES)
    ]
    note = "Commands in a write: as the servers count them, by how often they read."
    return [grid(records, "cluster", "100 at a time, a cluster beside one server", columns, note)]


DECISIONS: Final = Benchmark("decisions", _measure, _tables)
ALGORITHMS: Final = Benchmark("algorithms", _measure_algorithms, _tables_of_algorithms)
CLUSTER: Final = Benchmark("cluster", _measure_cluster, _tables_of_cluster)
