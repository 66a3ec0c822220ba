"""The machine and the versions that a run's figures belong to."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "aiogram",
    "redis",
    "cachetools",
    "pydantic",
    "aiohttp",
    "limits",
    "throttled-py",
    "pyrate-limiter",
    "aiogram-sentinel",
    "hiredis",
    "uvloop",
)


def description(redis_version: str) -> dict[str, str]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "redis-server": redis_version,
        **{package: _version(package) for package in PACKAGES},
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
