"""Prometheus and promtool for the tests: installed, or taken out of Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

NOT_RUN = (
    "NOT RUN: no Prometheus here, and Debian's package cannot be had. To run this test: "
    "apt-get install prometheus, or set PROMETHEUS_BIN to the folder of prometheus and promtool"
)


def find_prometheus() -> str | None:
    """The path of `prometheus`; None if it is not available."""
    return _find("prometheus")


def find_promtool() -> str | None:
    """The path of `promtool`; None if it is not available."""
    return _find("promtool")


def _find(name: str) -> str | None:
    folders = [os.environ.get("PROMETHEUS_BIN", ""), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found:
        return found
    taken = _extracted()
    return str(taken / name) if taken and (taken / name).exists() else None


@cache
def _extracted() -> Path | None:
    """The binaries of Debian's package, extracted without root; kept for the next run."""
    kept = Path(tempfile.gettempdir()) / f"bot-ratelimit-prometheus-{os.getuid()}"
    binaries = kept / "root" / "usr" / "bin"
    if (binaries / "promtool").exists():
        return binaries
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    kept.mkdir(exist_ok=True, mode=0o700)
    if kept.stat().st_uid != os.getuid():
        return None
    try:
        subprocess.run(
            ["apt-get", "download", "prometheus"],
            cwd=kept,
            check=True,
            capture_output=True,
            timeout=120,
        )
        (package,) = kept.glob("prometheus_*.deb")
        subprocess.run(["dpkg", "-x", package, kept / "root"], check=True, timeout=120)
    except (subprocess.SubprocessError, OSError, ValueError):
        return None
    return binaries if (binaries / "promtool").exists() else None
