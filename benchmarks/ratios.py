"""The second table of the page: this package beside others, as ratios of their rates."""

from __future__ import annotations

from typing import Final

from benchmarks import bots, decisions
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.tables import Table, ranged

ONE, MANY = decisions.on_redis(1), decisions.on_redis(100)
# What is compared: the benchmark, its case, ours in it, whose rate it is divided by.
RATIOS: Final = (
    ("Redis, 100 at a time: `limits`", "decisions", MANY, OURS, "limits"),
    ("Redis, 100 at a time: INCR and TTL in MULTI", "decisions", MANY, OURS, "hand-written MULTI"),
    ("Redis, 100 at a time: INCR in EVALSHA", "decisions", MANY, OURS, "hand-written EVALSHA"),
    ("Redis, 1 at a time: `limits`", "decisions", ONE, OURS, "limits"),
    ("Redis, 1 at a time: a bare INCR", "decisions", ONE, OURS, "bare INCR"),
    ("memory: `limits`", "decisions", decisions.IN_A_LOOP, OURS, "limits"),
    (
        "updates, 100 at a time: a bot without limits",
        "bots",
        bots.case(100),
        bots.OURS_ON_REDIS,
        bots.NOBODY,
    ),
)


def table(records: Records) -> Table:
    rows = [
        (what, ranged(rate), ranged(records.ratio(benchmark, case, peer, who, "cpu_us")))
        for what, benchmark, case, who, peer in RATIOS
        if (rate := records.ratio(benchmark, case, who, peer))
    ]
    nodes = records.ratio("cluster", decisions.THREE_NODES, OURS, OURS, at=decisions.ONE_SERVER)
    if nodes:
        rows.append(("a cluster of three: one server", ranged(nodes), ""))
    return Table("Times the rate of others", ("", "median (range)", "by CPU of the bot"), rows)
