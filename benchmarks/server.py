"""The processes of a run: redis-servers with their statistics, a proxy, workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import redis

from tests.proxy import Proxy
from tests.servers import Server as Process
from tests.servers import cluster_port, find_server, running


class Server:
    """A redis-server on a free port of loopback, or a cluster of several; nothing is persisted."""

    def __init__(self, *ports: int) -> None:
        self.port = ports[0]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._admins: list[Any] = [redis.Redis(port=port) for port in ports]

    def flush(self) -> None:
        """Delete all keys and statistics."""
        for admin in self._admins:
            admin.flushall()
            admin.config_resetstat()

    def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        found = self._info("cpu")
        return sum(float(each["used_cpu_user"]) + float(each["used_cpu_sys"]) for each in found)

    def version(self) -> str:
        return str(self._info("server")[0]["redis_version"])

    def commands(self) -> int:
        """The commands of decisions since the last flush: scripts, or else INCRs."""
        names = ("cmdstat_evalsha", "cmdstat_incrby", "cmdstat_incr")
        found = [
            next((int(each[name]["calls"]) for name in names if name in each), 0)
            for each in self._info("commandstats")
        ]
        return sum(found)

    def reads(self) -> int:
        """How often the server has read from connections since the last flush."""
        return sum(int(each["total_reads_processed"]) for each in self._info("stats"))

    def key_bytes(self) -> float:
        """The MEMORY USAGE of a key, as the mean of 100 random keys."""
        admin = self._admins[0]
        sizes = [admin.memory_usage(admin.randomkey()) for _ in range(100)]
        return float(sum(sizes)) / len(sizes)

    def _info(self, section: str) -> list[dict[str, Any]]:
        return [admin.info(section) for admin in self._admins]


@contextmanager
def redis_server() -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory() as directory,
        running("redis-server", Path(directory)) as process,
    ):
        yield Server(process.port)


@contextmanager
def redis_cluster(nodes: int = 3) -> Iterator[Server]:
    """A cluster of several primaries that share the slots."""
    with ExitStack() as stack:
        ports: list[int] = []
        for _ in range(nodes):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = ("--cluster-enabled", "yes")
            binary = find_server("redis-server")
            process = Process(binary, directory, *options, port=cluster_port())
            process.start()
            stack.callback(process.kill)
            ports.append(process.port)
        admins: list[Any] = [redis.Redis(port=port, decode_responses=True) for port in ports]
        share = -(-16_384 // nodes)
        for i, admin in enumerate(admins):
            slots = range(i * share, min((i + 1) * share, 16_384))
            admin.execute_command("CLUSTER ADDSLOTS", *slots)
            admin.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
        for admin in admins:
            while (
                admin.execute_command("CLUSTER INFO")["cluster_state"] != "ok"
                or len(admin.execute_command("CLUSTER SLOTS")) < nodes
            ):
                time.sleep(0.05)
        yield Server(*ports)


@contextmanager
def worker(target: Callable[..., None], *arguments: object) -> Iterator[Pipe]:
    """Run `target(pipe, *arguments)` in a separate process; yield the other end of the pipe."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        process.kill()
        process.join()


@contextmanager
def distant(port: int, round_trip: float) -> Iterator[int]:
    """A loopback port with this round trip in seconds to the given port."""
    with worker(_proxy, port, round_trip) as pipe:
        yield pipe.recv()


def _proxy(pipe: Pipe, port: int, round_trip: float) -> None:
    proxy = Proxy(port, round_trip)
    proxy.start()
    pipe.send(proxy.port)
    pipe.recv()  # until this process is killed
