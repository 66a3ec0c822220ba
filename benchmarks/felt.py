"""The first table of the page: what users and operators notice, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from benchmarks import bots, decisions, distance, webhooks
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records, Spread
from benchmarks.tables import Table, number, percent, whole

# A round trip between regions, the larger flood, and how many updates come at a time under load.
FAR_MS, FLOOD, MANY = 60, max(bots.FLOODS), max(bots.AT_A_TIME)
_US: Final = 1e-3


def table(records: Records) -> Table:
    columns = ("", "with `bot_ratelimit`", "without")
    return Table(
        "In short, by the medians", columns, [row for row in _rows(records) if row[1] != "–"]
    )


def _rows(records: Records) -> Iterator[tuple[str, str, str]]:
    def added(concern: str, case: str, who: str, figure: str = "p50_us") -> str:
        more = records.difference(concern, case, who, bots.NOBODY, figure)
        return _shown(more, _US, "+{} ms")

    def flood(who: str, figure: str, text: str) -> str:
        return _shown(records.spread("flood", bots.flood(FLOOD), who, figure), 1, text, whole)

    def rate(concern: str, case: str, who: str) -> str:
        return _shown(records.spread(concern, case, who, "rate"), 1, "{}")

    def far(figure: str, text: str, show: Callable[..., str] = number) -> str:
        found = records.spread("distance", distance.at(FAR_MS), OURS, figure)
        return _shown(found, _US if figure.endswith("_us") else 1, text, show)

    redis, nobody = bots.OURS_ON_REDIS, bots.NOBODY
    one, many = bots.case(1), bots.case(MANY)
    yield "an update takes longer, counts in memory", added("bots", one, bots.OURS_IN_MEMORY), ""
    yield "an update takes longer, Redis on the same machine", added("bots", one, redis), ""
    webhook = added("webhooks", webhooks.case(1), redis)
    yield "a webhook request takes longer, Redis on the same machine", webhook, ""
    cpu = added("bots", many, redis, "cpu_us")
    yield f"CPU time of the bot for an update, {MANY} at a time", cpu, ""
    carried = rate("decisions", decisions.on_redis(MANY), OURS)
    yield f"decisions a second of one Redis, {MANY} at a time", carried, ""
    what = f"webhook requests a second of one process, {MANY} at a time"
    busy = webhooks.case(MANY)
    yield what, rate("webhooks", busy, redis), rate("webhooks", busy, nobody)
    what = f"of {FLOOD:,} updates that one user sends at once, handled"
    yield what, flood(redis, "handled", "{}"), flood(nobody, "handled", "{}")
    what = "another user's update just after them is answered within"
    yield what, flood(redis, "other_ms", "{} ms"), flood(nobody, "other_ms", "{} ms")
    what = f"Redis {FAR_MS} ms away: decided by Redis within 0.25 s"
    yield what, far("share", "{}", percent), ""
    yield f"Redis {FAR_MS} ms away: 99 of 100 decisions take at most", far("p99_us", "{} ms"), ""


def _shown(
    spread: Spread | None, scale: float, text: str, show: Callable[..., str] = number
) -> str:
    return "–" if spread is None else text.format(show(spread, scale))
