"""Algorithms: each of them, with one rule and with four, beside whoever has it too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from benchmarks.contestant import Setting
from benchmarks.ours import NAME as OURS
from benchmarks.race import ON_REDIS, Run, decisions
from benchmarks.records import Absence, Record, Records
from benchmarks.tables import Table, digits, number

NAME: Final = "algorithms"
ALGORITHMS: Final = ("fixed window", "sliding window", "token bucket")
STARTERS: Final = (OURS, "limits", "throttled-py", "pyrate-limiter")
COLUMNS: Final = tuple((rules, n) for n in (1, 100) for rules in (1, 4))


def _case(algorithm: str, rules: int, concurrency: int) -> str:
    return f"{algorithm}, {rules} rule{'s' * (rules > 1)}, {concurrency} at a time"


def measure(run: Run) -> Iterator[Record | Absence]:
    starters = {who: ON_REDIS[who] for who in STARTERS}
    settings = {
        _case(algorithm, rules, n): (Setting(run.server.url, n, algorithm, rules), starters)
        for algorithm in ALGORITHMS
        for rules, n in COLUMNS
    }
    fewer = replace(run, rounds=max(1, run.rounds // 2))
    return decisions(fewer, NAME, settings)


def tables(records: Records) -> list[Table]:
    rows = []
    for algorithm in ALGORITHMS:
        for who in records.who(NAME, _case(algorithm, 1, 1)):
            rates = (
                number(records.spread(NAME, _case(algorithm, rules, n), who, "rate"))
                for rules, n in COLUMNS
            )
            rows.append((f"{algorithm}: {who}", *rates))
    titles = (f"{rules} rule{'s' * (rules > 1)}, {n} at a time" for rules, n in COLUMNS)
    return [
        Table(
            "Decisions a second on Redis, by algorithm and number of rules",
            ("", *titles),
            rows,
            f"`{OURS}` and `pyrate-limiter` decide four rules together, in one round trip; the "
            "others take them one after another, and charge those before the one that refuses.",
        ),
        _costs(records),
    ]


def _costs(records: Records) -> Table:
    columns = [
        (f"{what}, {rules} rule{'s' * (rules > 1)}", figure, scale, rules)
        for what, figure, scale in (
            ("p99, ms", "p99_us", 1e-3),
            ("µs of CPU in the bot", "cpu_us", 1),
            ("µs of CPU in Redis", "server_us", 1),
        )
        for rules in (1, 4)
    ]

    def cell(algorithm: str, rules: int, figure: str, scale: float) -> str:
        spread = records.spread(NAME, _case(algorithm, rules, 100), OURS, figure)
        return "–" if spread is None else digits(spread.median * scale)

    return Table(
        f"What a decision of {OURS} costs, 100 at a time",
        ("", *(title for title, *_ in columns)),
        [
            (
                algorithm,
                *(cell(algorithm, rules, figure, scale) for _, figure, scale, rules in columns),
            )
            for algorithm in ALGORITHMS
        ],
    )
