"""Health: whether a limiter works, at the start and when somebody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final, Literal

from bot_ratelimit.errors import printable
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.rules.limit import MAX_AMOUNT, Limit
from bot_ratelimit.storage.base import Ask, ConnectionStatus, Count, Op, ServerEvents
from bot_ratelimit.storage.guarded import Missing, Server
from bot_ratelimit.storage.loops import Ticker

log = logging.getLogger("bot_ratelimit")

PATIENCE: Final = 6.0
"""Seconds that the first question waits: a little longer than an attempt to connect takes."""
WATCH_EVERY: Final = 1.0
"""Seconds between two questions while the storage does not answer."""
_LIMIT: Final = Limit(MAX_AMOUNT, 1.0)


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """How one Redis server is.

    Attributes:
        name: Its address as logs name it, for example `127.0.0.1:6379`.
        connected: Whether there is a connection to it.
        breaker: `"closed"`, or `"open"` while nothing but a probe now and then is sent to it.
        out_for: Seconds since it stopped answering; None while it answers.
        latency: Seconds that its last answer took; None before the first.
        scripts: False if it refuses scripts; then only a single fixed window can be decided there.
        problem: What is wrong, and how to fix it; empty if nothing is. Also set if the server
            answers, but has refused to decide by some of the rules in the last minute.
    """

    name: str
    connected: bool
    breaker: Literal["closed", "open"]
    out_for: float | None
    latency: float | None
    scripts: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Health:
    """How a limiter is, as `Limiter.health` and `Limiter.check` return it.

    With Redis gone for 12 seconds and `on_error="allow"`: `ok` is False, `ready` True, and
    `servers[0].out_for` 12.0.

    Attributes:
        ok: Whether limits hold on every instance now.
        ready: Whether the bot can serve updates: False only with `on_error="deny"` while Redis
            does not decide.
        source: Where counts are kept.
        policy: What answers while the storage cannot: the limiter's `on_error`.
        latency: Seconds that the test call of `check` took; None from `health`, and if it failed.
        problem: What is wrong, and how to fix it; empty if nothing is.
        servers: The Redis servers, as far as they are known; empty in memory.
    """

    ok: bool
    ready: bool
    source: str
    policy: str
    latency: float | None
    problem: str
    servers: tuple[ServerHealth, ...]


class Watch(ServerEvents):
    """Asks the storage once a second, at the start and in an outage, until it answers.

    So a bot without updates knows when an outage is over. The guard logs what it finds out.
    """

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._ticker = Ticker(self._tick, WATCH_EVERY)
        self._starts = False
        self._is_closed = False
        decider.guard.events = (*decider.guard.events, self)

    def open(self) -> None:
        """Ask now, and log when the storage answers for the first time."""
        self._starts, self._is_closed = True, False
        self._ticker.start(at_once=True)

    def storage_failed(self, server: str, kind: str) -> None:
        """Ask until no outage lasts, unless the limiter was closed."""
        if not self._is_closed:
            self._ticker.start()

    async def close(self) -> None:
        """Ask no more."""
        self._starts, self._is_closed = False, True
        await self._ticker.stop()

    async def _tick(self) -> bool:
        await (self._begin() if self._starts else self._look())
        servers = self._decider.guard.servers().values()
        return self._starts or any(each.outage() for each in servers)

    async def _begin(self) -> None:
        """Ask for the first time, and try the rules of the bot."""
        decider, storage = self._decider, self._decider.storage
        ask = Ask([_count(decider)], Op.PEEK)  # which leaves no key
        answer = await decider.guard.run(ask.counts, storage.ask, ask, timeout=PATIENCE)
        if isinstance(answer, Missing):
            return
        self._starts = False
        log.info("Connected to %s (%s)", storage.title, storage.server(ask.counts))
        await asyncio.sleep(0)  # the rules of a bot are complete when it has started
        await _try_rules(decider)

    async def _look(self) -> None:
        """Ask each server that is out of reach, in a cluster by a key of the same slot."""
        guard, ask = self._decider.guard, self._decider.storage.ask
        for outage in filter(None, (each.outage() for each in guard.servers().values())):
            count = _count(self._decider, f":{{{outage.counts[0].key}}}")
            await guard.run([count], ask, Ask([count], Op.PEEK))


async def checked(decider: Decider) -> Health:
    """The health after a test call, which charges no user."""
    began, problem, ask = time.perf_counter(), "", Ask([_count(decider)])
    if not decider.is_local:
        try:
            await decider.storage.ask(ask, timeout=decider.timeout)
        except Exception as error:
            problem = printable(str(error) or repr(error))
    seconds = time.perf_counter() - began
    if not problem:
        await _try_rules(decider)
    return health_of(decider, (decider.storage.server(ask.counts), seconds, problem))


def health_of(decider: Decider, test: tuple[str, float, str] | None = None) -> Health:
    """Collect what is known of a storage; `test` is of a call: its server, seconds and problem."""
    storage, known, now = decider.storage, decider.guard.servers(), decider.guard.now()
    servers = tuple(_server(status, known.get(status.server), now) for status in storage.status())
    found = {server.name: server.problem for server in servers}
    found = {name: each.problem(now) for name, each in known.items() if name not in found} | found
    latency, problem = None, ""
    if test is not None:
        tested, seconds, problem = test
        latency = None if problem else seconds
        # A call that was answered proves that this server answers; what it refused remains.
        found[tested] = known[tested].fault_at(now) if tested in known else ""
    problem = next(filter(None, (problem, *found.values())), "")
    return Health(
        ok=not problem,
        ready=not problem or decider.on_error != "deny",
        source=storage.source,
        policy=decider.on_error,
        latency=latency,
        problem=problem,
        servers=servers,
    )


def _server(status: ConnectionStatus, server: Server | None, now: float) -> ServerHealth:
    outage = None if server is None else server.outage()
    return ServerHealth(
        name=status.server,
        connected=status.is_open,
        breaker="closed" if server is None or server.breaker.closed else "open",
        out_for=None if outage is None else now - outage.since,
        latency=status.latency,
        scripts=status.uses_script,
        problem=status.last_error or ("" if server is None else server.problem(now)),
    )


async def _try_rules(decider: Decider) -> None:
    """Let the guard find out whether the storage can decide by the rules of this bot."""
    ask, timeout = decider.storage.ask, decider.timeout
    trials = (
        decider.guard.run(each.counts, ask, each, timeout=timeout) for each in decider.trials()
    )
    await asyncio.gather(*trials)


def _count(decider: Decider, of: str = "") -> Count:
    return Count(f"{decider.key_prefix}:ratelimit:check{of}", _LIMIT)
