"""Decisions: one fixed window, everybody, from one at a time to a thousand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from benchmarks.contestant import Setting
from benchmarks.ours import NAME as OURS
from benchmarks.race import IN_MEMORY, ON_REDIS, Run, decisions
from benchmarks.records import Absence, Record, Records
from benchmarks.tables import Table, digits, number, ranged

NAME: Final = "decisions"
CONCURRENCY: Final = (1, 10, 100, 1_000)
IN_A_LOOP: Final = "memory, the loop never turns"
TURNING: Final = "memory, the loop turns"


def on_redis(concurrency: int) -> str:
    return f"Redis, {concurrency} at a time"


def measure(run: Run) -> Iterator[Record | Absence]:
    url = run.server.url
    redis = {on_redis(n): (Setting(url, n), ON_REDIS) for n in CONCURRENCY}
    memory = {case: (Setting(url), IN_MEMORY) for case in (IN_A_LOOP, TURNING)}
    return decisions(run, NAME, redis | memory, turning=TURNING)


def tables(records: Records) -> list[Table]:
    cases = [on_redis(n) for n in CONCURRENCY]
    at_a_time = tuple(f"{n:,} at a time" for n in CONCURRENCY)
    everybody = records.who(NAME, cases[0])
    rates = Table(
        "Decisions a second on Redis",
        ("", *at_a_time),
        [
            (who, *(number(records.spread(NAME, case, who, "rate")) for case in cases))
            for who in everybody
        ],
    )
    ratios = Table(
        f"Decisions a second of {OURS}, in multiples of the others' (range over the rounds)",
        ("", *at_a_time),
        [
            (who, *(ranged(records.ratio(NAME, case, OURS, who)) for case in cases))
            for who in everybody
            if who != OURS
        ],
    )
    latencies = Table(
        "Milliseconds until a decision, p50 / p99",
        ("", *at_a_time),
        [(who, *(_latency(records, case, who) for case in cases)) for who in everybody],
        "With so many at a time, each asks again as soon as it has its answer: at 1,000 this is "
        "how long a queue of 1,000 takes. Where p50 and p99 are far apart, redis-py's blocking "
        "pool gives its connections to those who just had one before those who wait.",
    )
    return [rates, ratios, latencies, _cpu(records, everybody), _memory(records)]


def _latency(records: Records, case: str, who: str) -> str:
    found = [records.spread(NAME, case, who, figure) for figure in ("p50_us", "p99_us")]
    return " / ".join("–" if each is None else digits(each.median / 1_000) for each in found)


def _cpu(records: Records, everybody: list[str]) -> Table:
    columns = [
        (f"{where}, {n} at a time", on_redis(n), figure)
        for where, figure in (("bot", "cpu_us"), ("Redis", "server_us"))
        for n in (1, 100)
    ]
    return Table(
        "Microseconds of CPU for a decision",
        ("", *(title for title, _, _ in columns)),
        [
            (who, *(number(records.spread(NAME, case, who, figure)) for _, case, figure in columns))
            for who in everybody
        ],
        "In the bot's process, and in the server, the network stack included.",
    )


def _memory(records: Records) -> Table:
    return Table(
        "Decisions a second in memory",
        ("", "the loop never turns", f"{OURS} ÷ it", "the loop turns", f"{OURS} ÷ it"),
        [
            (
                who,
                *(
                    cell
                    for case in (IN_A_LOOP, TURNING)
                    for cell in (
                        number(records.spread(NAME, case, who, "rate")),
                        ranged(records.ratio(NAME, case, OURS, who)) if who != OURS else "",
                    )
                ),
            )
            for who in records.who(NAME, IN_A_LOOP)
        ],
        "In memory `aiogram-sentinel` counts in a sliding window. Where the loop turns after each "
        "decision, as in a bot, background tasks get to run.",
    )
