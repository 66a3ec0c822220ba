"""Shards: the connections to the nodes of a Redis Cluster, and which node has which key."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import lru_cache, partial
from random import shuffle
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot

from bot_ratelimit.errors import (
    ConfigError,
    NotConnectedError,
    QueueFullError,
    RateLimitError,
    StorageError,
)
from bot_ratelimit.storage.base import ServerEvents
from bot_ratelimit.storage.loops import PerLoop, Seldom
from bot_ratelimit.storage.redis import driver
from bot_ratelimit.storage.redis.clock import ListeningClock
from bot_ratelimit.storage.redis.codec import DecisionCodec
from bot_ratelimit.storage.redis.connection import CONNECT_TIMEOUT, MAX_WAITING, Connection
from bot_ratelimit.storage.redis.driver import Address
from bot_ratelimit.storage.redis.encoding import encode_key
from bot_ratelimit.storage.redis.request import Redirect, Request, answer_all

log = logging.getLogger("bot_ratelimit")

REFRESH_EVERY: Final = 0.5
"""Seconds between two requests for the slot map while something is wrong."""
MAX_ASKED: Final = 3
"""How many of the known nodes are asked at the same time."""
ASK_TIMEOUT: Final = 1.0
"""The time-out in seconds for the slot map over an open connection."""


class _Early:
    """Requests that wait until any node is reached, in one event loop."""

    def __init__(self, on_tick: Callable[[float], bool]) -> None:
        self.clock: Final = ListeningClock(on_tick)
        self.requests: list[tuple[str, Request]] = []
        """With their keys."""
        self.in_vain = 0.0  # how long a request has waited since the last change

    def take(self, before: float = math.inf) -> list[tuple[str, Request]]:
        """Remove and return those whose time is over before this; all by default."""
        taken = [each for each in self.requests if each[1].deadline <= before]
        self.requests = [each for each in self.requests if each[1].deadline > before]
        return taken


class Shards:
    """A connection to each node that has slots, opened when it is first needed.

    `CLUSTER SLOTS` is asked over any open connection: when one was opened, when a node redirects,
    and repeatedly while a node is unreachable. Until the slot map is known, the first node that
    answers of those that the client was given is asked, and its redirect is followed. Requests that
    come before any node is reached wait for one; while the event loop is busy, no time passes.
    """

    def __init__(self, client: RedisCluster, connect_timeout: float = CONNECT_TIMEOUT) -> None:
        self._client = client
        self._connect_timeout = connect_timeout
        self._events: Sequence[ServerEvents] = ()
        self._nodes: dict[Address, Connection] = {}
        self._slots: dict[int, Connection] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self._is_closed = False
        self._early = PerLoop(lambda: _Early(self._expire))
        self._left: set[Connection] = set()  # of nodes without slots, until they are closed
        self._seldom = Seldom()
        for address in driver.startup_nodes(client):
            self._node(address)

    def holder(self, key: str) -> Connection:
        """Return the connection to the node of this key."""
        found = self._slots.get(_slot_of(key))
        return found or max(self._nodes.values(), key=lambda each: (each.is_open, each.is_healthy))

    def connections(self) -> list[Connection]:
        """All connections."""
        return list(self._nodes.values())

    def open(self) -> None:
        """Fetch the slot map in the background."""
        if self._is_closed:  # a connection that is closed soon has just failed
            return
        loop, task = asyncio.get_running_loop(), self._refreshing
        if task is None or task.done() or task.get_loop() is not loop:
            self._refreshing = loop.create_task(self._refresh(), context=Context())

    @property
    def is_reached(self) -> bool:
        """Whether it is known which node to ask."""
        return bool(self._slots) or any(each.is_open for each in self._nodes.values())

    def submit(self, item: Any, key: str, timeout: float) -> asyncio.Future[Any]:
        """Send an item to the node of its key; if none is known yet, to the first that answers.

        Raises:
            QueueFullError: Too many requests wait already.
            NotConnectedError: No node can be reached, or none within the timeout.
        """
        node = self._slots.get(_slot_of(key))
        if node is None:
            for each in () if self.is_reached else self.connections():
                each.open()
            if not self._is_reaching:
                node = self.holder(key)
        if node is not None:
            return node.submit(item, timeout)
        early = self._early.get()
        if timeout <= early.in_vain:
            raise self._not_reached(timeout)
        request = Request(item, timeout)
        if len(early.requests) >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} requests already wait for {self.where}")
        request.deadline = early.clock.now() + timeout
        early.clock.start(timeout)
        early.requests.append((key, request))
        return request.future

    @property
    def _is_reaching(self) -> bool:
        """Whether no node was reached, and one still may be."""
        nodes = self._nodes.values()
        return not self.is_reached and any(each.last_error is None for each in nodes)

    def _not_reached(self, timeout: float) -> NotConnectedError:
        return NotConnectedError(f"not connected to {self.where} within {timeout:g} s")

    def _expire(self, now: float) -> bool:
        """Give up early requests whose time is over; return whether others wait."""
        early = self._early.get()
        for _, request in early.take(now):
            early.in_vain = max(early.in_vain, request.timeout)
            request.answer(self._not_reached(request.timeout))
        return bool(early.requests)

    @property
    def where(self) -> str:
        """The nodes that the client was given, for errors."""
        (host, port), *others = driver.startup_nodes(self._client)
        return f"the cluster at {host}:{port}{' and others' if others else ''}"

    async def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        try:
            task, self._refreshing = self._refreshing, None
            if task is not None and task.get_loop() is asyncio.get_running_loop():
                task.cancel()
                await asyncio.wait([task])
            early = self._early.get()
            early.clock.stop()
            early.in_vain = 0.0
            closed = StorageError("the storage was closed", kind="closed")
            answer_all([request for _, request in early.take()], closed)
            for connection in (*self.connections(), *self._left):
                await connection.close()
            self._left.clear()
        finally:
            self._is_closed = False

    def dropped(self) -> None:
        """Close all connections, from any thread: nobody uses them any more."""
        self._is_closed, task = True, self._refreshing
        if task is not None and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(task.cancel)
        for connection in (*self.connections(), *self._left):
            connection.dropped()

    def observe(self, events: Sequence[ServerEvents]) -> None:
        """Set who is told of all connections, also of later ones."""
        self._events = events
        for connection in self.connections():
            connection.observe(events)

    def _node(self, address: Address) -> Connection:
        node = self._nodes.get(address)
        if node is None:
            endpoint = driver.node_endpoint(self._client, address)
            node = self._nodes[address] = Connection(
                endpoint,
                DecisionCodec(lambda: endpoint.where, slot_of=_slot_of),
                redirect=self._follow_redirect,
                on_change=self._note_change,
                connect_timeout=self._connect_timeout,
            )
            node.observe(self._events)
        return node

    def _note_change(self) -> None:
        """A node was reached or lost: fetch the slot map, and send what waits."""
        self.open()
        early = self._early.get()
        early.in_vain = 0.0
        for key, request in () if self._is_reaching else early.take():
            request.left = max(request.deadline - early.clock.now(), 0.0)
            self._enqueue(self.holder(key), request)

    def _follow_redirect(self, request: Request, redirect: Redirect) -> None:
        """Send the request to the node that a redirect names: the first node executed nothing."""
        node = self._node(driver.remap(self._client, redirect.address))
        request.asking = redirect.asking
        if not redirect.asking:
            self._slots[redirect.slot] = node
            self.open()
        self._enqueue(node, request)

    def _enqueue(self, node: Connection, request: Request) -> None:
        try:
            node.enqueue(request)
        except StorageError as error:
            request.answer(error)

    async def _refresh(self) -> None:
        """Fetch the slot map until it is known and all nodes in it are reachable."""
        while True:
            await asyncio.sleep(max(0.0, self._refreshed_at + REFRESH_EVERY - time.monotonic()))
            self._refreshed_at = time.monotonic()
            answer = await self._fetch_slots()
            if answer is not None:
                self._use_slots(*answer)
                if all(node.is_healthy for node in self._nodes.values()):
                    return

    async def _fetch_slots(self) -> tuple[Any, str] | None:
        """Ask some nodes at once, since one may hang; return the first slot map and its host."""
        if not any(each.is_open for each in self._nodes.values()):  # or all may have new addresses
            for address in driver.startup_nodes(self._client):
                self._node(address)
        known = self.connections()
        shuffle(known)
        known.sort(key=lambda each: not each.is_open)
        asking = {asyncio.ensure_future(_slots(each)) for each in known[:MAX_ASKED]}
        try:
            for answer in asyncio.as_completed(asking):
                reply, asked = await answer
                if isinstance(reply, list) and reply:  # empty while no node has slots
                    return reply, asked.host
                if isinstance(reply, ConfigError) and self._seldom():
                    log.warning(
                        "Redis at %s refuses CLUSTER SLOTS (%s): each slot is found by a redirect, "
                        "and the nodes are asked again and again; allow it (ACL SETUSER <user> "
                        "+cluster|slots)",
                        asked.where,
                        str(reply).partition(" - ")[0],
                    )
        finally:
            for task in asking:
                task.cancel()
        return None

    def _use_slots(self, ranges: Any, asked: str) -> None:
        slots: dict[int, Connection] = {}
        for first, last, primary, *_ in ranges:
            address = _host(primary) or asked, int(primary[1])
            node = self._node(driver.remap(self._client, address))
            slots.update(dict.fromkeys(range(int(first), int(last) + 1), node))
        self._slots = slots
        used = set(slots.values())
        for address in [address for address, node in self._nodes.items() if node not in used]:
            # By then its last requests have been answered or have timed out.
            self._left.add(node := self._nodes.pop(address))
            leave = partial(self._leave, address, node)
            asyncio.get_running_loop().call_later(self._connect_timeout, leave)

    def _leave(self, address: Address, node: Connection) -> None:
        if node not in self._left:  # it was closed with the others
            return
        self._left.discard(node)
        if address in self._nodes:  # it is back: what is reported is about its new connection
            node.observe(())
        node.abandon()


@lru_cache(maxsize=4096)  # a decision asks twice: who answers, and where to send it
def _slot_of(key: str) -> int:
    return key_slot(encode_key(key))


async def _slots(connection: Connection) -> tuple[Any, Connection]:
    timeout = ASK_TIMEOUT if connection.is_open else connection.connect_timeout
    try:
        return await connection.submit((b"CLUSTER", b"SLOTS"), timeout), connection
    except RateLimitError as error:
        return error, connection


def _host(node: Sequence[Any]) -> str:
    """The host of a node in `CLUSTER SLOTS`; empty if it is the host that was asked."""
    host = node[0] or b""
    if host == b"?" and len(node) > 3:  # host names are preferred, and this node has none
        details = node[3]  # a dict with RESP3
        pairs = details if isinstance(details, dict) else zip(*[iter(details)] * 2, strict=True)
        host = dict(pairs).get(b"ip", b"")
    return "" if host == b"?" else bytes(host).decode()
