"""Processes: several instances of a bot on one Redis, deciding about the same users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from benchmarks.child import Child, together
from benchmarks.contestant import Setting, allowance
from benchmarks.measure import Figures, check
from benchmarks.ours import NAME as OURS
from benchmarks.race import Run, race
from benchmarks.records import Absence, Record, Records
from benchmarks.tables import Table, digits, number

NAME: Final = "processes"
COUNTS: Final = (1, 2, 3)
STARTERS: Final = (OURS, "limits", "hand-written MULTI")
CONCURRENCY: Final = 100


def _case(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"


def measure(run: Run) -> Iterator[Record | Absence]:
    with ExitStack() as stack:
        children = [Child() for _ in range(max(COUNTS))]
        for child in children:
            stack.callback(child.close)

        def decide(case: str, who: str) -> Figures:
            team = children[: counts[case]]
            used: list[float] = []

            def begin() -> None:
                run.server.flush()
                used.append(run.server.cpu())

            setting = Setting(run.server.url, CONCURRENCY)
            results = together(team, who, setting, run.seconds, begin)
            served = run.server.cpu() - used[0]
            calls = [int(result["calls"]) for result in results]
            # Together they allow as much as one would: the limit is theirs in common.
            check(sum(int(result["allowed"]) for result in results), allowance(*calls))
            return {
                "rate": sum(result["rate"] for result in results),
                "p99_us": max(result["p99_us"] for result in results),
                "server_us": served / sum(calls) * 1e6,
            }

        fewer = replace(run, rounds=max(1, run.rounds * 2 // 3))
        counts = {_case(n): n for n in COUNTS}
        yield from race(fewer, NAME, dict.fromkeys(counts, STARTERS), decide)


def tables(records: Records) -> list[Table]:
    titles = tuple(_case(n) for n in COUNTS)
    return [
        Table(
            f"Decisions a second of all processes together, {CONCURRENCY} at a time in each",
            ("", *titles),
            [
                (who, *(number(records.spread(NAME, _case(n), who, "rate")) for n in COUNTS))
                for who in records.who(NAME)
            ],
            "The processes and Redis share this machine's cores.",
        ),
        Table(
            "The slowest process's p99, in milliseconds / the server's CPU for a decision, in µs",
            ("", *titles),
            [
                (who, *(_strain(records, _case(n), who) for n in COUNTS))
                for who in records.who(NAME)
            ],
        ),
    ]


def _strain(records: Records, case: str, who: str) -> str:
    p99 = records.spread(NAME, case, who, "p99_us")
    if p99 is None:
        return "–"
    return f"{digits(p99.median / 1_000)} / {number(records.spread(NAME, case, who, 'server_us'))}"
