"""The script: joined from small parts, and the same under other Lua versions than that of Redis."""

from __future__ import annotations

import os
import subprocess
import sys

from bot_ratelimit.algorithms.script import PARTS, SCRIPT


def test_the_script_is_joined_from_its_parts() -> None:
    """Every part is in the script, and together they stay small enough to be read at once."""
    assert ".lua ]]" not in SCRIPT
    assert SCRIPT.count("algorithms.") >= len(PARTS)
    assert SCRIPT.count("\n") <= 450


def test_lua_5_4_decides_the_same() -> None:
    """Servers with Lua 5.4, for example Dragonfly, keep all promises."""
    suites = ["conformance", "adjustments", "calendar", "foreign_data"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "fakeredis", "-p", "no:cacheprovider"]
    command += [f"tests/storage/test_{suite}.py" for suite in suites]
    done = subprocess.run(
        command,
        env={**os.environ, "FAKEREDIS_LUA_VERSION": "5.4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
    assert " passed" in done.stdout
