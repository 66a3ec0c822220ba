"""Fixtures: the stand-in for Telegram, and the example bot as a process that talks to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from example_bot.demo.botapi import BotApi
from tests.processes import Forked
from tests.servers import PATIENCE

ROOT = Path(__file__).parents[2]


class Process:
    """A Python module that runs in a directory of its own, with nothing in its environment."""

    def __init__(self, process: Forked) -> None:
        self._process = process
        self._log: list[str] = []
        self._out: list[str] = []

    @classmethod
    async def start(
        cls, module: str, directory: Path, *arguments: str, **environment: str
    ) -> Process:
        variables = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), **environment}
        return cls(await Forked.start(module, *arguments, cwd=directory, env=variables))

    async def logged(self, text: str) -> str:
        """Wait for a line on stderr."""
        return await self._line(text, self._process.stderr, self._log)

    async def said(self, text: str) -> str:
        """Wait for a line on stdout."""
        return await self._line(text, self._process.stdout, self._out)

    async def _line(self, text: str, stream: asyncio.StreamReader, read: list[str]) -> str:
        async with asyncio.timeout(PATIENCE):
            async for line in stream:
                read.append(line.decode())
                if text in read[-1]:
                    return read[-1]
        raise AssertionError(f"ended without {text!r}: {''.join(read)}")

    async def finished(self) -> tuple[int, str, str]:
        """Wait for the end: the exit status, stdout, and all of stderr."""
        async with asyncio.timeout(PATIENCE):
            out, log = await self._process.communicate()
        assert self._process.returncode is not None
        said, logged = "".join(self._out) + out.decode(), "".join(self._log) + log.decode()
        return self._process.returncode, said, logged

    def terminate(self) -> None:
        self._process.terminate()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    async def abandon(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    async with BotApi() as api:
        yield api


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts modules as processes, in an empty directory, and leaves none behind."""
    processes: list[Process] = []

    async def start(module: str, *arguments: str, **environment: str) -> Process:
        processes.append(await Process.start(module, tmp_path, *arguments, **environment))
        return processes[-1]

    yield start
    for process in processes:
        await process.abandon()
