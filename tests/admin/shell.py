"""The command as a process. This module imports no aiogram, because each process imports it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bot_ratelimit.__main__ import main
from tests.processes import FORKS

ROOT = Path(__file__).parents[2]


def python(*arguments: str, shell: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Another Python with these arguments; `shell` is what follows them in a shell."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, *arguments]
    if shell:
        command = ["/bin/sh", "-c", f'exec "$0" "$@" {shell}', *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def child(arguments: tuple[str, ...], environment: dict[str, str], directory: str) -> None:
    """The command, with files of this directory as its standard streams."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["bot-ratelimit", *arguments]
    with ExitStack() as stack:
        for name, mode in (("in", "r"), ("out", "w"), ("err", "w")):
            stream = stack.enter_context(Path(directory, name).open(mode, encoding="utf-8"))
            setattr(sys, f"std{name}", stream)
        main()


async def run(*arguments: str, typed: str = "", **variables: str) -> Ran:
    """`bot-ratelimit ...` in the working directory, with this on its standard input."""
    with TemporaryDirectory() as directory:
        streams = Path(directory)
        # Without the width of the terminal in which the tests run.
        environment = {name: each for name, each in os.environ.items() if name != "COLUMNS"}
        (streams / "in").write_text(typed)
        process = FORKS.Process(target=child, args=(arguments, environment | variables, directory))
        await asyncio.to_thread(process.start)  # the fork server may have to start, too
        await asyncio.to_thread(process.join, 60)
        status, out, err = process.exitcode, *((streams / n).read_text() for n in ("out", "err"))
    assert status is not None
    assert "Traceback" not in err, err
    return Ran(status, out, err)
