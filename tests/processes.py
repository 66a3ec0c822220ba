"""Other processes, forked by a server that has imported aiogram, which takes seconds."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
import warnings
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(  # no prometheus_client: a process reads its settings at the import
    [
        *("aiogram", "bot_ratelimit.admin.cli", "bot_ratelimit.incoming.middleware"),
        *("bot_ratelimit.outgoing.limits", "bot_ratelimit.storage.redis.storage"),
    ]
)


class Forked:
    """`python -W error -m module arguments`, but faster, with what asyncio's `Process` has."""

    def __init__(
        self, process: ForkServerProcess, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader
    ) -> None:
        self._process = process
        self.stdout, self.stderr = stdout, stderr

    @classmethod
    async def start(
        cls,
        module: str,
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Forked:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        texts = [str(each) for each in arguments]
        streams = [DupFd(out_end), DupFd(err_end)]
        process = FORKS.Process(
            target=_run, args=(module, texts, cwd or Path.cwd(), env or {**os.environ}, streams)
        )
        await asyncio.to_thread(process.start)
        os.close(out_end)
        os.close(err_end)
        return cls(process, await _reader(out), await _reader(err))

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> None:
        await asyncio.to_thread(self._process.join)

    async def communicate(self) -> tuple[bytes, bytes]:
        """All that it says and logs until it ends."""
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return out, err


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return reader


def _run(
    module: str, arguments: list[str], cwd: Path, env: dict[str, str], streams: list[Any]
) -> None:
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.detach(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    warnings.simplefilter("error")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # as a Python ends; multiprocessing would exit with 1
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
