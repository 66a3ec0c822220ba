"""The script under other Lua versions than that of Redis."""

from __future__ import annotations

import os
import subprocess
import sys


def test_lua_5_4_decides_the_same() -> None:
    """Servers with Lua 5.4, for example Dragonfly, keep all promises, and decide as the model."""
    command = [sys.executable, "-m", "pytest", "-q", "--quick", "-p", "no:cacheprovider"]
    command += ["-k", "fakeredis or model_memory_and_redis"]
    suites = ["conformance", "adjustments", "foreign_data", "model"]
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
