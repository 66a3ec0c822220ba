"""Targets: the goals of the package, and its measured values."""

from __future__ import annotations

from typing import Final, NamedTuple

from benchmarks import bots, decisions, distance
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.tables import Table, ranged


class Target(NamedTuple):
    what: str
    benchmark: str
    case: str
    goal: float
    over: str = ""
    """The candidate whose figure ours is divided by; without it, our figure counts, and less is
    better."""
    figure: str = "rate"
    who: str = OURS


AT_ONCE: Final = {n: decisions.on_redis(n) for n in decisions.AT_A_TIME}
TARGETS: Final = (
    Target("100 at a time: rate, times that of `limits`", "decisions", AT_ONCE[100], 6, "limits"),
    Target(
        "100 at a time: rate, times that of MULTI",
        "decisions",
        AT_ONCE[100],
        12,
        "hand-written MULTI",
    ),
    Target(
        "1 at a time: rate, times that of a bare INCR", "decisions", AT_ONCE[1], 0.85, "bare INCR"
    ),
    Target("1,000 at a time: p99, µs", "decisions", AT_ONCE[1_000], 30_000, figure="p99_us"),
    Target(
        "Redis 120 ms away: share of decisions lost",
        "distance",
        distance.at(120),
        0,
        figure="share_lost",
    ),
    Target(
        "loop blocked for 3 s: share of decisions lost",
        "busy",
        distance.away(3),
        0,
        figure="share_lost",
    ),
    Target(
        "a cluster of three: rate, times that of one server",
        "cluster",
        decisions.THREE_NODES,
        0.5,
        decisions.ONE_SERVER,
    ),
    Target(
        "`feed_update`, 100 at a time: rate, times that without a middleware",
        "bots",
        bots.case(100),
        0.9,
        bots.NOBODY,
        who=bots.OURS_ON_REDIS,
    ),
    Target(
        "in memory: rate, times that of `limits`", "decisions", decisions.IN_A_LOOP, 0.8, "limits"
    ),
)


def table(records: Records) -> Table:
    return Table(
        "Targets",
        ("", "target", "measured: median (range over the rounds)", "by CPU", ""),
        [row for target in TARGETS if (row := _row(records, target))],
        "By CPU: the same ratio, of the CPU that the bot's process used for each decision.",
    )


def _row(records: Records, target: Target) -> tuple[str, ...]:
    what, benchmark, case, goal, over, figure, who = target
    if not over:
        found, cpu, sign = records.spread(benchmark, case, who, figure), None, "≤"
    else:
        at, peer = (over, who) if benchmark == "cluster" else (case, over)  # other case, or other
        found = records.ratio(benchmark, case, who, peer, figure, at)
        cpu = records.ratio(benchmark, at, peer, who, "cpu_us", case)
        sign = "≥"
    if found is None:
        return ()
    reached = found.median >= goal if over else found.median <= goal
    verdict = "reached" if reached else "**below target**"
    return what, f"{sign} {goal:,g}", ranged(found), ranged(cpu) if cpu else "", verdict
