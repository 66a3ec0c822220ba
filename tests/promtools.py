"""Prometheus and promtool for the tests: installed, or taken out of Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

NOT_RUN = (
    "NOT RUN: no Prometheus here, and Debian's package cannot be had. To run this test: "
    "apt-get install prometheus, or set PROMETHEUS_BIN to the folder of prometheus and promtool"
)


def _find(name: str) -> str | None:
    """The path of the program; None if it is not available."""
    folders = [os.environ.get("PROMETHEUS_BIN", ""), os.environ.get("PATH", os.defpath)]
    return shutil.which(name, path=os.pathsep.join(folders)) or shutil.which(name, path=_unpacked())


find_prometheus, find_promtool = partial(_find, "prometheus"), partial(_find, "promtool")


@cache
def _unpacked() -> str:
    """Where the binaries of Debian's package are, unpacked without root, for the next run too."""
    kept = Path(tempfile.gettempdir()) / f"bot-ratelimit-prometheus-{os.getuid()}"
    binaries = kept / "root" / "usr" / "bin"
    kept.mkdir(exist_ok=True, mode=0o700)
    if kept.stat().st_uid == os.getuid() and not (binaries / "promtool").exists():
        run = partial(subprocess.run, cwd=kept, check=True, capture_output=True, timeout=120)
        try:
            run(["apt-get", "download", "prometheus"])
            run(["dpkg", "-x", *kept.glob("prometheus_*.deb"), kept / "root"])
        except (subprocess.SubprocessError, OSError):
            pass  # no Debian, or no network
    return str(binaries)
