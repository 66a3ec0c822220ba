"""Clients: with and without hiredis, redis-py's parser in C, and uvloop, a faster event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from benchmarks.child import HIREDIS, UVLOOP, Child, together
from benchmarks.contestant import Setting, allowance
from benchmarks.measure import Figures, check
from benchmarks.ours import NAME as OURS
from benchmarks.race import Run, race
from benchmarks.records import Absence, Record, Records
from benchmarks.tables import Table, number

NAME: Final = "clients"
VARIANTS: Final = {
    "neither": (),
    "hiredis": (HIREDIS,),
    "uvloop": (UVLOOP,),
    "both": (HIREDIS, UVLOOP),
}
STARTERS: Final = (OURS, "limits", "hand-written MULTI", "bare INCR")
CONCURRENCY: Final = (1, 100)


def _case(variant: str, concurrency: int) -> str:
    return f"with {variant}, {concurrency} at a time"


def measure(run: Run) -> Iterator[Record | Absence]:
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for variant, having in VARIANTS.items():
            if run.quick and len(having) == 1:
                continue
            children[variant] = Child(*having)
            stack.callback(children[variant].close)

        def decide(case: str, who: str) -> Figures:
            variant, concurrency = settings[case]
            setting = Setting(run.server.url, concurrency)
            team = [children[variant]]
            (figures,) = together(team, who, setting, run.seconds, run.server.flush)
            check(int(figures.pop("allowed")), allowance(int(figures["calls"])))
            return figures

        settings = {_case(variant, n): (variant, n) for n in CONCURRENCY for variant in children}
        fewer = replace(run, rounds=max(1, run.rounds * 2 // 3))
        yield from race(fewer, NAME, dict.fromkeys(settings, STARTERS), decide)


def tables(records: Records) -> list[Table]:
    def rows(figure: str) -> list[tuple[str, ...]]:
        return [
            (
                f"{who}, {n} at a time",
                *(number(records.spread(NAME, _case(v, n), who, figure)) for v in VARIANTS),
            )
            for n in CONCURRENCY
            for who in records.who(NAME)
        ]

    speeds_up = "by what speeds redis-py up"
    return [
        Table(f"Decisions a second on Redis, {speeds_up}", ("", *VARIANTS), rows("rate")),
        Table(
            f"Microseconds of CPU in the bot for a decision, {speeds_up}",
            ("", *VARIANTS),
            rows("cpu_us"),
        ),
    ]
