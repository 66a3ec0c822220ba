"""Health: whether a limiter works, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.storage.base import ConnectionStatus
from bot_ratelimit.storage.servers import Server


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
            answers, but has refused to decide by some of the rules when it was last asked.
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


def health_of(decider: Decider, test: tuple[str, float, str] | None = None) -> Health:
    """Collect what is known of a storage: its connections, outages and faults.

    Args:
        decider: The storage with its guard.
        test: The server of a test call, the call's time in seconds, and its problem.
    """
    storage, known = decider.storage, decider.guard.servers()
    now = decider.guard.now()
    servers = tuple(_server(status, known.get(status.server), now) for status in storage.status())
    named = {server.name for server in servers}
    others = [server.problem for name, server in known.items() if name not in named]
    problems = [*(server.problem for server in servers), *others]
    latency = None
    if test is not None:
        tested, seconds, problem = test
        latency = None if problem else seconds
        # A call that was answered proves that this server answers; faults of rules remain.
        faults = [fault for each in known.values() for fault in each.faults.values()]
        others = [each.problem for name, each in known.items() if name != tested]
        problems = [problem, *faults, *others]
    problem = next(filter(None, problems), "")
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
    return ServerHealth(
        name=status.server,
        connected=status.is_open,
        breaker="closed" if server is None or server.breaker.closed else "open",
        out_for=None if server is None else server.out_for(now),
        latency=status.latency,
        scripts=status.uses_script,
        problem=status.last_error or ("" if server is None else server.problem),
    )
