"""The page: page.md with the tables of a run, so that it always agrees with the run."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
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
_PACKAGES: Final = ("aiogram", "redis", "limits", "aiogram-sentinel")
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


def render(records: Records, tables: Mapping[str, Table]) -> str:
    """Return the page in Markdown; what was not run says so.

    Args:
        tables: Tables by the name of their placeholder in page.md.
    """
    texts = {name: table.markdown().rstrip() for name, table in tables.items() if table.rows}
    versions = ", ".join(f"{name} {records.machine[name]}" for name in _PACKAGES)
    texts["about"] = (
        "Measured on {date} with `{command}`: {processor}, {system}, Python {Python}, redis-server "
        "{redis-server}; up to {rounds} rounds of {seconds} s; load average {load} before, {load "
        "after} after. ".format(**records.machine)
        + f"{versions}."
    )
    texts["losses"] = "\n".join(f"- {loss}" for loss in losses(records)) or "Nothing."

    def fill(match: re.Match[str]) -> str:
        return texts.get(match[1], "Not part of this run.")

    return _PLACE.sub(fill, _TEMPLATE.read_text()).rstrip() + "\n"


def losses(records: Records) -> list[str]:
    """Where another candidate's median is better than ours: who, in what, and by what factor."""
    found: dict[str, dict[str, list[str]]] = {}
    for benchmark, own, figures in _COMPARED:
        for case in records.cases(benchmark):
            for figure, what in figures.items():
                for who, factor in _ahead(records, benchmark, case, own, figure):
                    cases = found.setdefault(who, {})
                    cases.setdefault(case, []).append(f"{what} {factor}")
    return [
        f"{who}: " + "; ".join(f"{case}: {', '.join(ahead)}" for case, ahead in cases.items())
        for who, cases in found.items()
    ]


def _ahead(
    records: Records, benchmark: str, case: str, own: str, figure: str
) -> Iterator[tuple[str, str]]:
    for who in records.who(benchmark, case):
        ratio = records.ratio(benchmark, case, who, own, figure)
        if ratio is None or who.startswith(OURS) or who in bots.UNLIMITED:
            continue
        if ratio.median >= 1.01 if figure == "rate" else ratio.median <= 0.99:
            yield who, digits(ratio.median)


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
