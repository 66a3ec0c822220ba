"""The example bot as a process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.guide.pages import ROOT
from tests.processes import Forked
from tests.servers import PATIENCE


class Process:
    """A Python module that runs in a directory of its own, with nothing in its environment."""

    def __init__(self, process: Forked) -> None:
        self._process = process
        self._read: dict[asyncio.StreamReader, str] = {process.stdout: "", process.stderr: ""}

    @classmethod
    async def start(cls, module: str, directory: Path, **environment: str) -> Process:
        variables = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), **environment}
        return cls(await Forked.start(module, cwd=directory, env=variables))

    async def logged(self, text: str) -> str:
        """Wait for a line on stderr."""
        return await self._line(text, self._process.stderr)

    async def said(self, text: str) -> str:
        """Wait for a line on stdout."""
        return await self._line(text, self._process.stdout)

    async def _line(self, text: str, stream: asyncio.StreamReader) -> str:
        async with asyncio.timeout(PATIENCE):
            async for line in stream:
                self._read[stream] += line.decode()
                if text in line.decode():
                    return line.decode()
        raise AssertionError(f"ended without {text!r}: {self._read[stream]}")

    async def finished(self) -> tuple[int, str, str]:
        """Wait for the end: the exit status, stdout, and all of stderr."""
        async with asyncio.timeout(PATIENCE):
            rest = await self._process.communicate()
        assert self._process.returncode is not None
        said, logged = (
            before + more.decode() for before, more in zip(self._read.values(), rest, strict=True)
        )
        return self._process.returncode, said, logged

    def stop(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    async def abandon(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts modules as processes, in an empty directory, and leaves none behind."""
    processes: list[Process] = []

    async def start(module: str, **environment: str) -> Process:
        processes.append(await Process.start(module, tmp_path, **environment))
        return processes[-1]

    yield start
    for process in processes:
        await process.abandon()
