"""Servers: what this process knows of each server, and what the log says of it.

There is one circuit breaker for each server in the process, for everything that asks it: a
middleware, what the bot sends, the page of operators. So an outage is
found out once, and is one line in the log::

    Guard "updates" -------+
    Guard "requests" ------+---- KeySpace ---- Server 10.0.0.5:6379: breaker, outage, faults
    Guard "logins" --------+              ---- Server 10.0.0.6:6379 (in a cluster)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

from bot_ratelimit.errors import (
    ConfigError,
    NotConnectedError,
    QueueFullError,
    StorageError,
    printable,
)
from bot_ratelimit.storage.base import Count, ServerEvents
from bot_ratelimit.storage.breaker import Breaker
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

_MAX_FAULTS: Final = 64
_TELLS_MORE: Final = frozenset({"auth", "tls", "dns"})
"""Kinds of failures that are logged even during an outage: somebody has to do something else."""
_SAYS_NOTHING: Final = {"not_connected"}
"""The kind of a failure while the first attempt to connect lasts: its reason is logged, too."""


class Asker(Protocol):
    """A part of the bot that asks a storage; a `Guard`."""

    part: str
    title: str
    timeout: float
    events: Sequence[ServerEvents]
    is_used: bool
    consequence: Callable[[], str]

    def server_of(self, counts: Sequence[Count]) -> str:
        """The name of the server that decides about these counts now."""
        ...


class Failing(NamedTuple):
    """Failures of a server that are in the log."""

    since: float
    counts: Sequence[Count]
    """What it could not decide first."""
    kinds: set[str]
    """The kinds of errors that were logged."""


class Server:
    """What this process knows of one server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.breaker = Breaker()
        self.is_troubled = False
        """Whether anything below may be set, so that a good answer changes something."""
        self.failing: Failing | None = None
        """Set from a failure that was logged to the next answer."""
        self.outage: tuple[float, str] | None = None
        """Since when it is out of reach, and the last reason; None after a single failure."""
        self.faults: dict[tuple[str, Hashable], str] = {}
        """What cannot be decided there although it answers: by part and rules, the problem."""

    def out_for(self, now: float) -> float | None:
        """Seconds since it is out of reach; None if it is not."""
        return None if self.outage is None else now - self.outage[0]

    @property
    def problem(self) -> str:
        """Why it decides nothing, or not everything; empty if it does."""
        return self.outage[1] if self.outage else next(iter(self.faults.values()), "")


class KeySpace:
    """The servers behind one key space, and everybody in this process who asks them.

    Args:
        clock: Seconds from any starting point.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.servers: dict[str, Server] = {}
        self.guards: WeakValueDictionary[int, Asker] = WeakValueDictionary()
        self.is_failing = False
        """Whether a server fails, so that another one that answers may have replaced it."""
        self._seldom = Seldom(clock=clock)

    def server(self, name: str) -> Server:
        """The server of this name."""
        server = self.servers.get(name)
        if server is None:
            server = self.servers[name] = Server(name)
        return server

    def answered(
        self, server: Server, ticket: int, counts: Sequence[Count], by: Asker, latency: float
    ) -> None:
        """Note that a server which had failed has decided, after `latency` seconds."""
        server.faults.pop((by.part, rules_in(counts)), None)
        if latency > min(guard.timeout for guard in self._guards()):  # too late for another part
            server.breaker.abandoned(ticket)
            return
        if not server.breaker.succeeded(ticket):
            return
        self._recovered(server, by)
        server.is_troubled = bool(server.faults)

    def failed(
        self, server: Server, ticket: int, error: StorageError, counts: Sequence[Count], by: Asker
    ) -> None:
        """Note that a server did not answer, or said that it cannot serve now."""
        if error.kind == "closed":  # on purpose
            server.breaker.abandoned(ticket)
            return
        server.is_troubled = True
        for each in by.events:
            each.storage_failed(server.name, error.kind)
        reason = printable(str(error).rstrip("."))
        if isinstance(error, QueueFullError):
            server.breaker.abandoned(ticket)
            if self._seldom("queue full"):
                log.warning(
                    "Too many decisions at once: %s. For these, %s", reason, by.consequence()
                )
            return
        now = self.clock()
        opened = False
        if isinstance(error, NotConnectedError):
            server.breaker.abandoned(ticket)
        else:
            opened = server.breaker.failed(ticket, now)
        if opened:
            for each in self._events():
                each.breaker_changed(server.name, True)
        if isinstance(error, NotConnectedError) or not server.breaker.closed:
            self._begin_outage(server, error.kind, reason, now)
        self._log_failure(server, error, reason, counts, now, by)

    def rejected(
        self, server: Server, ticket: int, error: Exception, counts: Sequence[Count], by: Asker
    ) -> None:
        """Note an error reply that is not an outage: asking less often would not help."""
        server.breaker.succeeded(ticket)  # this does not mean that limits work again
        for each in by.events:
            each.storage_failed(server.name, getattr(error, "kind", type(error).__name__))
        self.note_fault(server, counts, error, by)

    def note_fault(
        self, server: Server, counts: Sequence[Count], error: Exception, by: Asker
    ) -> None:
        """Keep and log what a server refuses until something is changed."""
        server.is_troubled = True
        expected = isinstance(error, ConfigError)
        problem = printable(str(error) if expected else repr(error))
        if len(server.faults) < _MAX_FAULTS:
            server.faults[by.part, rules_in(counts)] = problem
        kind = getattr(error, "kind", type(error).__name__)
        if kind == ConfigError.kind:  # no Redis error code: only the text identifies the error
            kind = str(error)[:200]
        if self._seldom(f"{server.name} {by.part} {kind}"):
            log.error(
                "%s rate limit check failed: %s. Until that is fixed, %s",
                by.title,
                problem,
                by.consequence(),
                exc_info=None if expected else error,
            )

    def _log_failure(
        self,
        server: Server,
        error: StorageError,
        reason: str,
        counts: Sequence[Count],
        now: float,
        by: Asker,
    ) -> None:
        """Log the beginning of an outage and its reason; a late answer once a minute."""
        failing = server.failing
        if failing is None:
            if server.outage is None and not self._seldom(f"{server.name} {error.kind}"):
                return
            server.failing = Failing(now, counts, {error.kind})
            self.is_failing = True
        elif error.kind in failing.kinds or not (
            error.kind in _TELLS_MORE or failing.kinds == _SAYS_NOTHING
        ):
            return
        else:
            failing.kinds.add(error.kind)
        connecting = isinstance(error, NotConnectedError)
        log.error(
            "%s rate limit check failed: %s.%s Until %s answers, %s",
            by.title,
            reason,
            " The bot tries to connect about every second." if connecting else "",
            by.title,
            "; ".join(dict.fromkeys(guard.consequence() for guard in self._guards())),
            exc_info=error.bug,
        )

    def _begin_outage(self, server: Server, kind: str, reason: str, now: float) -> None:
        """Start an outage; a single late answer is not one."""
        is_new = server.outage is None
        server.outage = (now if server.outage is None else server.outage[0], reason)
        for each in self._events() if is_new else ():
            each.outage_began(server.name, kind)

    def _recovered(self, server: Server, by: Asker) -> None:
        """Log that a server answers, also if it replaces a server that failed.

        In a cluster another node may have taken over, and the failed one is never asked again.
        """
        now = self.clock()
        for failed in list(self.servers.values()):
            if failed.failing is None:
                continue
            since, counts, _ = failed.failing
            if failed is not server and by.server_of(counts) != server.name:
                continue
            failed.failing = None
            log.warning(
                "%s answers again after %.1f s: limits hold on every instance (%s; %s)",
                by.title,
                now - since,
                server.name
                if failed is server
                else f"{server.name}, asked instead of {failed.name}",
                ", ".join(dict.fromkeys(guard.part for guard in self._guards())),
            )
            if failed is not server:
                self._end_outage(failed, now)
                del self.servers[failed.name]
        self.is_failing = any(each.failing is not None for each in self.servers.values())
        self._end_outage(server, now)

    def _end_outage(self, server: Server, now: float) -> None:
        if server.outage is None:
            return
        since, _ = server.outage
        server.outage = None
        for each in self._events():
            each.breaker_changed(server.name, False)
            each.outage_ended(server.name, now - since)

    def _guards(self) -> list[Asker]:
        return [guard for _, guard in sorted(self.guards.items()) if guard.is_used]

    def _events(self) -> Iterator[ServerEvents]:
        """Everybody who is told of outages, once."""
        yield from {id(each): each for guard in self._guards() for each in guard.events}.values()


_key_spaces: Final[WeakValueDictionary[Hashable, KeySpace]] = WeakValueDictionary()


def key_space_of(name: Hashable, clock: Callable[[], float]) -> KeySpace:
    """Return the key space of this name, which everybody in this process shares."""
    # With the clock, because times of two clocks cannot be compared.
    space = _key_spaces.get((name, clock))
    if space is None:
        space = _key_spaces[name, clock] = KeySpace(clock)
    return space


def rules_in(counts: Sequence[Count]) -> Hashable:
    """What faults are known by: the limits, not whose counts they are."""
    return tuple(count.limit for count in counts)
