"""The one real redis-server of a run, and what it says about itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import redis

from tests.servers import running


class Server:
    """A redis-server on a free port of loopback, without persistence."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._admin = redis.Redis(port=port)

    def flush(self) -> None:
        self._admin.flushall()

    def echo(self, text: str) -> None:
        """Leave a mark for whoever listens with MONITOR."""
        self._admin.echo(text)

    def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        info = self._info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes that the server has allocated."""
        return int(self._info("memory")["used_memory"])

    def version(self) -> str:
        return str(self._info("server")["redis_version"])

    def keys(self) -> int:
        return int(str(self._admin.dbsize()))

    def wait_until_alone(self) -> None:
        """Until the other clients are gone, whose buffers are in the server's memory too."""
        while int(self._info("clients")["connected_clients"]) > 1:
            time.sleep(0.01)

    def key_bytes(self) -> float:
        """What MEMORY USAGE says of a key, as the mean of 200 random ones."""
        keys = [cast(bytes, self._admin.randomkey()).decode() for _ in range(200)]
        sizes = [self._admin.memory_usage(key) for key in keys]
        return sum(int(str(size)) for size in sizes) / len(sizes)

    def _info(self, section: str) -> dict[str, str]:
        return cast(dict[str, str], self._admin.info(section))


@contextmanager
def redis_server() -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory() as directory,
        running("redis-server", Path(directory)) as process,
    ):
        yield Server(process.port)
