"""Guard: asks a storage, unless its server is known not to answer.

There is one circuit breaker for each server in the process, whoever asks it: a middleware, what the
bot sends, the page of operators. So an outage is found out once, and is one line in the log::

    Guard "updates" -------+
    Guard "requests" ------+---- KeySpace ---- Server 10.0.0.5:6379: breaker, outage, faults
    Guard "logins" --------+              ---- Server 10.0.0.6:6379 (in a cluster)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from enum import Enum
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

from bot_ratelimit.errors import (
    ConfigError,
    NotConnectedError,
    QueueFullError,
    StorageError,
    printable,
)
from bot_ratelimit.storage.base import Count, Storage
from bot_ratelimit.storage.breaker import Breaker
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T")

_MAX_FAULTS: Final = 64
_TELLS_MORE: Final = frozenset({"auth", "tls", "dns"})
"""Kinds of failures that are logged even during an outage: somebody has to do something else."""
_numbers: Final = count()


class Missing(Enum):
    """Why there is no answer."""

    NOT_ASKED = "nothing was sent"
    UNKNOWN = "it is unknown whether the storage did what it was asked"


class GuardEvents(Protocol):
    """Is told of failures and outages; an `Observer` is one."""

    def storage_failed(self, server: str, kind: str) -> None:
        """The storage did not answer."""

    def outage_began(self, server: str, kind: str) -> None:
        """A server stopped answering."""

    def outage_ended(self, server: str, seconds: float) -> None:
        """A server answers again."""

    def breaker_changed(self, server: str, is_open: bool) -> None:
        """The circuit breaker of a server opened, or closed."""


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


class Guard:
    """Asks a storage for one part of the bot, and says when it has no answer.

    Args:
        storage: What is asked.
        part: Which part of the bot asks, in a word of the log: `"updates"`.
        consequence: Returns what happens there without an answer, for the log.
        clock: Seconds from any starting point; for the pauses between attempts.
        events: Are told of failures and outages.
    """

    def __init__(
        self,
        storage: Storage,
        part: str,
        consequence: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        events: Sequence[GuardEvents] = (),
    ) -> None:
        self.part = part
        self.consequence = consequence
        self.events = events
        self.is_used = False
        """Whether it has asked, so that an outage concerns it."""
        self._storage = storage
        self._clock = clock
        self._space = _key_space(storage.key_space, clock)
        self._space.guards[next(_numbers)] = self

    async def run(
        self,
        counts: Sequence[Count],
        call: Callable[..., Awaitable[T]],
        *arguments: Any,
        **named: Any,
    ) -> T | Missing:
        """Make a call to the server of these counts, unless it is known not to answer.

        Args:
            counts: What the call is about; they say which server answers.
            call: A method of the storage, or of a part of it.
            *arguments: Its arguments.
            **named: Its named arguments.

        Returns:
            The answer, or why there is none. It raises nothing else than a cancellation.
        """
        self.is_used = True
        name = self._storage.server(counts)
        server = self._space.servers.get(name) or self._space.server(name)
        breaker = server.breaker
        ticket = breaker.admit(self._clock)
        if ticket is None:
            return Missing.NOT_ASKED
        try:
            answer = await call(*arguments, **named)
        except StorageError as error:
            self._space.failed(server, ticket, error, counts, self)
            sent = not isinstance(error, (NotConnectedError, QueueFullError))
            return Missing.UNKNOWN if sent else Missing.NOT_ASKED
        except Exception as error:
            self._space.rejected(server, ticket, error, counts, self)
            return Missing.UNKNOWN
        except BaseException:
            breaker.abandoned(ticket)
            raise
        if server.is_troubled or self._space.is_failing:
            self._space.answered(server, ticket, counts, self)
        return answer

    def server_of(self, counts: Sequence[Count]) -> str:
        """The name of the server that decides about these counts now."""
        return self._storage.server(counts)

    def wait(self, counts: Sequence[Count]) -> float:
        """Seconds until the server of these counts is asked again; 0.0 if it is asked now."""
        return self._space.server(self._storage.server(counts)).breaker.wait(self._clock())

    def is_out(self, counts: Sequence[Count]) -> bool:
        """Whether the server of these counts is known to be out of reach."""
        server = self._space.servers.get(self._storage.server(counts))
        return server is not None and server.outage is not None

    def record(self, counts: Sequence[Count], error: Exception | None) -> None:
        """Note what a call outside of `run` has found out about rules: a fault, or none."""
        server = self._space.server(self._storage.server(counts))
        if error is None:
            server.faults.pop((self.part, _rules(counts)), None)
        elif not isinstance(error, StorageError):
            self._space.note_fault(server, counts, error, self)

    def servers(self) -> dict[str, Server]:
        """All servers that were asked so far, by name."""
        return dict(self._space.servers)

    def now(self) -> float:
        """The time of `Server.outage`."""
        return self._clock()


class KeySpace:
    """The servers behind one key space, and everybody in this process who asks them.

    Args:
        clock: Seconds from any starting point.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.servers: dict[str, Server] = {}
        self.guards: WeakValueDictionary[int, Guard] = WeakValueDictionary()
        self.is_failing = False
        """Whether a server fails, so that another one that answers may have replaced it."""
        self._seldom = Seldom(clock=clock)

    def server(self, name: str) -> Server:
        """The server of this name."""
        server = self.servers.get(name)
        if server is None:
            server = self.servers[name] = Server(name)
        return server

    def answered(self, server: Server, ticket: int, counts: Sequence[Count], by: Guard) -> None:
        """Note that a server which had failed has decided."""
        server.faults.pop((by.part, _rules(counts)), None)
        if not server.breaker.succeeded(ticket):
            return
        self._recovered(server, by)
        server.is_troubled = bool(server.faults)

    def failed(
        self, server: Server, ticket: int, error: StorageError, counts: Sequence[Count], by: Guard
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
        self._log_failure(server, error, reason, counts, now)

    def rejected(
        self, server: Server, ticket: int, error: Exception, counts: Sequence[Count], by: Guard
    ) -> None:
        """Note an error reply that is not an outage: asking less often would not help."""
        server.breaker.succeeded(ticket)  # this does not mean that limits work again
        for each in by.events:
            each.storage_failed(server.name, getattr(error, "kind", type(error).__name__))
        self.note_fault(server, counts, error, by)

    def note_fault(
        self, server: Server, counts: Sequence[Count], error: Exception, by: Guard
    ) -> None:
        """Keep and log what a server refuses until something is changed."""
        server.is_troubled = True
        expected = isinstance(error, ConfigError)
        problem = printable(str(error) if expected else repr(error))
        if len(server.faults) < _MAX_FAULTS:
            server.faults[by.part, _rules(counts)] = problem
        kind = getattr(error, "kind", type(error).__name__)
        if kind == ConfigError.kind:  # no Redis error code: only the text identifies the error
            kind = str(error)[:200]
        if self._seldom(f"{server.name} {by.part} {kind}"):
            log.error(
                "Redis rate limit check failed: %s. Until that is fixed, %s",
                problem,
                by.consequence(),
                exc_info=None if expected else error,
            )

    def _log_failure(
        self, server: Server, error: StorageError, reason: str, counts: Sequence[Count], now: float
    ) -> None:
        """Log the beginning of an outage; a late answer now and then once a minute."""
        failing = server.failing
        if failing is None:
            if server.outage is None and not self._seldom(f"{server.name} {error.kind}"):
                return
            server.failing = Failing(now, counts, {error.kind})
            self.is_failing = True
        elif error.kind in failing.kinds or error.kind not in _TELLS_MORE:
            return
        else:
            failing.kinds.add(error.kind)
        connecting = isinstance(error, NotConnectedError)
        log.error(
            "Redis rate limit check failed: %s.%s Until Redis answers, %s",
            reason,
            " The bot tries to connect about every second." if connecting else "",
            "; ".join(dict.fromkeys(guard.consequence() for guard in self._guards())),
            exc_info=error.bug,
        )

    def _begin_outage(self, server: Server, kind: str, reason: str, now: float) -> None:
        """Start an outage; a single late answer is not one."""
        is_new = server.outage is None
        server.outage = (now if server.outage is None else server.outage[0], reason)
        for each in self._events() if is_new else ():
            each.outage_began(server.name, kind)

    def _recovered(self, server: Server, by: Guard) -> None:
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
                "Redis answers again after %.1f s: limits hold on every instance (%s; %s)",
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

    def _guards(self) -> list[Guard]:
        return [guard for _, guard in sorted(self.guards.items()) if guard.is_used]

    def _events(self) -> Iterator[GuardEvents]:
        """Everybody who is told of outages, once."""
        yield from {id(each): each for guard in self._guards() for each in guard.events}.values()


_key_spaces: Final[WeakValueDictionary[Hashable, KeySpace]] = WeakValueDictionary()


def _key_space(name: Hashable, clock: Callable[[], float]) -> KeySpace:
    # With the clock, because times of two clocks cannot be compared.
    space = _key_spaces.get((name, clock))
    if space is None:
        space = _key_spaces[name, clock] = KeySpace(clock)
    return space


def _rules(counts: Sequence[Count]) -> Hashable:
    return tuple(count.limit for count in counts)
