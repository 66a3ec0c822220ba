"""Groups of servers: a primary with its sentinels, a Redis Cluster of several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from tests.servers import Server, cluster_port, find_server, wait_until

SERVICE = "shop"
SLOTS = 16_384
FAST_SYNC = ("--repl-diskless-sync-delay", "0")


def follows(replica: Server) -> bool:
    with redis.Redis(port=replica.port) as client:
        return bool(client.info("replication")["master_link_status"] == "up")


class SentinelServer(Server):
    """A `redis-server FILE --sentinel`."""

    def __init__(
        self, directory: Path, primary: int, password: str = "", down_after: float = 0.4
    ) -> None:
        super().__init__(find_server("redis-server"), directory)
        directory.mkdir(parents=True)
        lines = [
            *(f"port {self.port}", "bind 127.0.0.1", f"dir {directory}"),
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {SERVICE} {down_after * 1000:.0f}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        if password:
            lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        file = directory / "sentinel.conf"
        file.write_text("\n".join(lines) + "\n")
        self._command = [self._command[0], str(file), "--sentinel"]


class Sentinels:
    """A primary, its replica, and three sentinels that monitor them."""

    def __init__(self, directory: Path, password: str = "") -> None:
        binary = find_server("redis-server")
        self._password = password
        self.primary = Server(binary, directory, *FAST_SYNC)
        follow = ("--replicaof", "127.0.0.1", str(self.primary.port))
        self.replica = Server(binary, directory, *follow)
        self.sentinels = [
            SentinelServer(directory / f"sentinel{i}", self.primary.port, password)
            for i in range(3)
        ]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses of the sentinels, in the order in which clients get them."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    def start(self) -> None:
        self.primary.start()
        self.replica.start()
        wait_until(partial(follows, self.replica), "replication")
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            wait_until(partial(self._knows_all, sentinel.port), "sentinels know all")

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.primary):
            server.kill()

    def says(self, port: int, *question: str) -> Any:
        """The reply of a sentinel."""
        with redis.Redis(
            port=port, password=self._password or None, decode_responses=True, socket_timeout=1
        ) as client:
            return client.execute_command("SENTINEL", *question)

    def _knows_all(self, port: int) -> bool:
        state = self.says(port, "MASTER", SERVICE)
        if isinstance(state, list):
            state = dict(zip(state[::2], state[1::2], strict=True))
        if self._password:  # they are slow to find each other, which takes no part then
            return True
        return int(state["num-slaves"]) == 1 and int(state["num-other-sentinels"]) == 2


@contextmanager
def running_sentinels(directory: Path, password: str = "") -> Iterator[Sentinels]:
    """Three sentinels, a primary and a replica."""
    group = Sentinels(directory, password)
    try:
        group.start()
        yield group
    finally:
        group.stop()


class Cluster:
    """A Redis Cluster: primaries with a third of the slots each, and replicas of the first."""

    def __init__(self, directory: Path, replicas: int = 0) -> None:
        binary = find_server("redis-server")
        self.primaries: list[Server] = []
        self.replicas: list[Server] = []
        for i in range(3 + replicas):
            own = directory / f"node{i}"
            own.mkdir(parents=True)
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
            alone = ("--cluster-require-full-coverage", "no", *FAST_SYNC)
            node = Server(binary, own, *options, *alone, port=cluster_port())
            (self.primaries if i < 3 else self.replicas).append(node)
        self.ids: dict[int, str] = {}
        """By port."""

    @property
    def nodes(self) -> list[Server]:
        return [*self.primaries, *self.replicas]

    def start(self) -> None:
        edges = [SLOTS * i // 3 for i in range(4)]
        for epoch, node in enumerate(self.nodes, start=1):
            node.start()
            self.ids[node.port] = self.do(node, "CLUSTER MYID")
            self.do(node, "CLUSTER SET-CONFIG-EPOCH", epoch)
        for node, (first, end) in zip(self.primaries, pairwise(edges), strict=True):
            self.do(node, "CLUSTER ADDSLOTS", *range(first, end))
        for node in self.nodes[1:]:
            self.do(node, "CLUSTER MEET", "127.0.0.1", self.primaries[0].port)
        for node in self.nodes:
            wait_until(partial(self._is_whole, node), "the cluster forms")
        for node in self.replicas:
            self.do(node, "CLUSTER REPLICATE", self.ids[self.primaries[0].port])
            wait_until(partial(follows, node), "replication")

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    def do(self, node: Server, *command: object) -> Any:
        """Run a command on a node."""
        with redis.Redis(port=node.port, decode_responses=True, socket_timeout=5) as client:
            return client.execute_command(*command)

    def owner(self, slot: int) -> Server:
        """The primary that has this slot originally."""
        return self.primaries[next(i for i in range(3) if slot < SLOTS * (i + 1) // 3)]

    def begin_to_move(self, slot: int, source: Server, target: Server) -> None:
        """Start migrating the slot: missing keys are redirected to the target."""
        self.do(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source.port])
        self.do(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.ids[target.port])

    def move(self, slot: int, source: Server, target: Server) -> None:
        """Move the slot and its keys to the target."""
        self.begin_to_move(slot, source, target)
        for key in self.do(source, "CLUSTER GETKEYSINSLOT", slot, 1000):
            self.do(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        for node in (target, source):
            self.do(node, "CLUSTER SETSLOT", slot, "NODE", self.ids[target.port])

    def _is_whole(self, node: Server) -> bool:
        ranges = self.do(node, "CLUSTER SLOTS")
        nodes = self.do(node, "CLUSTER NODES")
        known = len(nodes) == len(self.nodes) and "handshake" not in str(nodes)
        return known and len(ranges) == 3 and self._state(node) == "ok"

    def is_healthy(self, node: Server) -> bool:
        """Whether this node considers all others alive."""
        return self._state(node) == "ok" and "fail" not in str(self.do(node, "CLUSTER NODES"))

    def _state(self, node: Server) -> str:
        return str(self.do(node, "CLUSTER INFO")["cluster_state"])


@contextmanager
def running_nodes(directory: Path, replicas: int = 0) -> Iterator[Cluster]:
    """A Redis Cluster of three primaries, and replicas of the first one."""
    cluster = Cluster(directory, replicas)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
