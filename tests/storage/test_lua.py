"""decide.lua under other Lua versions than that of Redis."""

from __future__ import annotations

import os
import subprocess
import sys


def test_lua_5_4_decides_the_same() -> None:
    """Servers with Lua 5.4, for example Dragonfly, keep all promises."""
    suites = ["test_conformance.py", "test_changes.py", "test_foreign_data.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "fakeredis", "-p", "no:cacheprovider"]
    command += [f"tests/storage/{suite}" for suite in suites]
    done = subprocess.run(
        command,
        env={**os.environ, "FAKEREDIS_LUA_VERSION": "5.4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
    assert " passed" in done.stdout
