"""The page: page.md with the tables of a run, so that it always agrees with the run."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks import bots
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.tables import Table, digits

_PLACE: Final = re.compile(r"<!-- (\w+) -->")
_TEMPLATE: Final = Path(__file__).with_name("page.md")
_PACKAGES: Final = (
    *("aiogram", "redis", "cachetools", "pydantic", "aiohttp"),
    *("limits", "aiogram-sentinel"),
)
_RATE: Final = {"rate": "decisions a second"}
_COSTS: Final = {"p99_us": "p99", "cpu_us": "CPU in the bot", "server_us": "CPU in Redis"}
_UPDATES: Final = {"rate": "updates a second", "cpu_us": "CPU in the bot"}
# Benchmarks, our candidate in them, and the figures: more is better for rates, else less.
_COMPARED: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    ("decisions", OURS, _RATE | _COSTS),
    ("algorithms", OURS, _RATE | {"bytes": "bytes in Redis"}),
    ("distance", OURS, _RATE),
    ("cluster", OURS, _RATE),
    ("bots", bots.OURS_ON_REDIS, _UPDATES),
    ("webhooks", bots.OURS_ON_REDIS, _UPDATES),
    ("flood", bots.OURS_ON_REDIS, {"ms": "time for all", "other_ms": "another user's wait"}),
)


def render(
    records: Records, sections: Mapping[str, list[Table]], pictures: Mapping[str, str]
) -> str:
    """Return the page in Markdown; benchmarks that were not run say so.

    Args:
        sections: Tables by the name of their placeholder in page.md.
        pictures: The description of each picture by its name, which is a placeholder too.
    """
    texts = {
        "about": "Measured on {date} with `{command}`: {processor}, {system}, Python {Python}, "
        "redis-server {redis-server}; up to {rounds} rounds of {seconds} s for each measurement. "
        "The load average was {load} before the run and {load after} at its end. The tables of "
        "this page come from that run; the prose is written by hand.".format(**records.machine),
        "losses": "\n".join(f"- {loss}" for loss in losses(records)) or "Nothing.",
        "skipped": _skipped(records),
        "versions": ", ".join(
            f"{name} {records.machine[name]}" for name in ("Python", "redis-server", *_PACKAGES)
        ),
    }

    def fill(match: re.Match[str]) -> str:
        place = match[1]
        if place in texts:
            return texts[place]
        if not sections.get(place):
            return "Not part of this run."
        shows = pictures.get(place)
        picture = f"![{shows}](images/{place}.png)\n\n" if shows else ""
        return picture + "\n".join(table.markdown() for table in sections[place]).rstrip()

    return _PLACE.sub(fill, _TEMPLATE.read_text()).rstrip() + "\n"


def losses(records: Records) -> list[str]:
    """Where another candidate's median is better than ours: in what, who, and by what factor."""
    return [
        f"{case}, {what}: {', '.join(found)}"
        for benchmark, own, figures in _COMPARED
        for figure, what in figures.items()
        for case in records.cases(benchmark)
        if (found := _ahead(records, benchmark, case, own, figure))
    ]


def _ahead(records: Records, benchmark: str, case: str, own: str, figure: str) -> list[str]:
    found = []
    for who in records.who(benchmark, case):
        ratio = records.ratio(benchmark, case, who, own, figure)
        if ratio is None or who.startswith(OURS) or who in bots.UNLIMITED:
            continue
        if ratio.median >= 1.01 if figure == "rate" else ratio.median <= 0.99:
            found.append(f"{who} {digits(ratio.median)}")
    return found


def _skipped(records: Records) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for benchmark, who, reason in records.skipped:
        found.setdefault((who, reason), []).append(benchmark)
    lines = [
        f"- {who}: {reason} ({places[0]}{f' and {len(places) - 1} more' * (len(places) > 1)})"
        for (who, reason), places in found.items()
    ]
    return "\n".join(lines) or "Every candidate took part in every benchmark."


def machine(redis_version: str) -> dict[str, str]:
    """The machine and the versions of a run."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "redis-server": redis_version,
        **{package: _version(package) for package in _PACKAGES},
        "load": load(),
    }


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
