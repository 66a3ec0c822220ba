"""Targets: the ratios that the package set itself, and what came of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from benchmarks import bots, decisions, observers
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records, Spread
from benchmarks.tables import Table, digits, ranged

DEADLINE_MS: Final = 250.0


class Target(NamedTuple):
    what: str
    floor: float
    aim: float
    measured: Spread | None


def targets(records: Records) -> list[Target]:
    def against(case: str, peer: str) -> Spread | None:
        return records.ratio(decisions.NAME, case, OURS, peer)

    hundred, one = decisions.on_redis(100), decisions.on_redis(1)
    return [
        Target("Redis, 100 at a time, against `limits`", 5, 10, against(hundred, "limits")),
        Target(
            "Redis, 100 at a time, against the hand-written MULTI",
            10,
            20,
            against(hundred, "hand-written MULTI"),
        ),
        Target("Redis, one at a time, against a bare INCR", 0.8, 0.95, against(one, "bare INCR")),
        Target(
            "`feed_update`, 100 at a time, on Redis against no middleware",
            0.90,
            0.95,
            bots.kept(records),
        ),
        Target(
            "memory, against `limits` in memory", 0.8, 1.5, against(decisions.IN_A_LOOP, "limits")
        ),
    ]


def table(records: Records) -> Table:
    rows: list[tuple[str, ...]] = [
        (t.what, digits(t.floor), digits(t.aim), ranged(t.measured), _verdict(t))
        for t in targets(records)
        if t.measured is not None
    ]
    watched = observers.added_by_metrics(records)
    if watched is not None:
        rows.append(
            (
                "`PrometheusMetrics`, µs added to a decision in memory",
                f"below {observers.MOST_US:g}",
                "",
                digits(watched),
                "reached" if watched < observers.MOST_US else "missed",
            )
        )
    p99 = records.spread(decisions.NAME, decisions.on_redis(1_000), OURS, "p99_us")
    if p99 is not None:
        ms = Spread(*(value / 1_000 for value in p99))
        rows.append(
            (
                "p99 of 1,000 at a time on Redis, ms",
                f"below {DEADLINE_MS:.0f}",
                "",
                ranged(ms),
                "reached" if ms.high < DEADLINE_MS else "missed",
            )
        )
    return Table(
        "Targets",
        ("ratio", "floor", "aim", "measured: median (range over the rounds)", ""),
        rows,
        "A single answer by the failure policy ends a race, so there was none where there is a "
        "figure.",
    )


def _verdict(target: Target) -> str:
    if target.measured is None or target.measured.median < target.floor:
        return "below the floor"
    return "aim reached" if target.measured.median >= target.aim else "floor reached"
