"""The page: page.md with a run's tables in it, so that it never disagrees with the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks import algorithms, bots, ceiling, clients, decisions, growth, processes, webhooks
from benchmarks.guards import GUARDS, OursOnRedis
from benchmarks.machine import PACKAGES
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.tables import Table, digits

_PLACE: Final = re.compile(r"<!-- (\w+) -->")
_TEMPLATE: Final = Path(__file__).with_name("page.md")

_NO_LIMITERS: Final = [name for name, guard in GUARDS.items() if not guard().limits]
_RATE: Final = {"rate": "decisions a second"}
_COSTS: Final = {"p99_us": "p99", "cpu_us": "CPU in the bot", "server_us": "CPU in Redis"}
# Concerns, who of us is compared in them, and the figures: of rates more is better, else less.
_COMPARED: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    (decisions.NAME, OURS, _RATE | _COSTS),
    (algorithms.NAME, OURS, _RATE),
    (clients.NAME, OURS, _RATE),
    (processes.NAME, OURS, _RATE),
    (ceiling.NAME, ceiling.BEST, _RATE),
    (bots.NAME, OursOnRedis.name, {"rate": "updates a second"}),
    (webhooks.NAME, OursOnRedis.name, {"rate": "updates a second", "cpu_us": "CPU in the bot"}),
    (growth.BYTES, OURS, {"used": "bytes for a user", "process": "bytes for a user"}),
)


def render(
    records: Records, sections: Mapping[str, list[Table]], pictures: Mapping[str, str]
) -> str:
    """The page in Markdown; what was not part of the run says so.

    Args:
        sections: Tables by the name of their place in page.md.
        pictures: What each picture shows, by its name, which is that of a place too.
    """

    def fill(match: re.Match[str]) -> str:
        place = match[1]
        if place in _TEXTS:
            return _TEXTS[place](records)
        if not sections.get(place):
            return "Not part of this run."
        shows = pictures.get(place)
        picture = f"![{shows}](images/{place}.png)\n\n" if shows else ""
        return picture + "\n".join(table.markdown() for table in sections[place]).rstrip()

    return _PLACE.sub(fill, _TEMPLATE.read_text()).rstrip() + "\n"


def losses(records: Records) -> list[str]:
    """Where another contestant's median is better than ours: in what, who, how many times ours."""
    return [
        f"{case}, {what}: {', '.join(found)}"
        for concern, own, figures in _COMPARED
        for figure, what in figures.items()
        for case in records.cases(concern)
        if (found := _ahead(records, concern, case, own, figure))
    ]


def _ahead(records: Records, concern: str, case: str, own: str, figure: str) -> list[str]:
    found = []
    for who in records.who(concern, case):
        ratio = records.ratio(concern, case, who, own, figure)
        if ratio is None or who.startswith(OURS) or who in _NO_LIMITERS:
            continue
        if ratio.median >= 1.01 if figure == "rate" else ratio.median <= 0.99:
            found.append(f"{who} {digits(ratio.median)}")
    return found


def _losses(records: Records) -> str:
    return "\n".join(f"- {loss}" for loss in losses(records)) or "Nothing."


def _about(records: Records) -> str:
    machine = records.machine
    return (
        f"Measured on {machine['date']} with `{machine['command']}`: {machine['processor']}, "
        f"{machine['system']}, Python {machine['Python']}, redis-server "
        f"{machine['redis-server']}; up to {machine['rounds']} rounds of {machine['seconds']} s "
        f"for each measurement. The load average was {machine['load']} before the run. This page "
        "is written by that command."
    )


def _absences(records: Records) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for concern, who, reason in records.absences:
        found.setdefault((who, reason), []).append(concern)
    lines = [f"- {who}: {reason} ({_shortened(where)})" for (who, reason), where in found.items()]
    return "\n".join(lines) or "Everybody took part in everything."


def _shortened(places: list[str]) -> str:
    return "; ".join(places) if len(places) <= 2 else f"{places[0]} and {len(places) - 1} more"


def _versions(records: Records) -> str:
    names = ("Python", "redis-server", *PACKAGES)
    return "\n".join(f"- {name} {records.machine[name]}" for name in names)


_TEXTS: Final = {
    "about": _about,
    "losses": _losses,
    "absences": _absences,
    "versions": _versions,
}
