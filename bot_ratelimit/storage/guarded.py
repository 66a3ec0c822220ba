"""Guard: asks a storage, unless its server is known not to answer, and logs outages.

There is one circuit breaker for each server in the process, for everything that asks it: a
middleware, what the bot sends, the page of operators. So an outage is found out once, and is one
line in the log::

    Guard "updates" -------+
    Guard "requests" ------+---- KeySpace ---- Server 10.0.0.5:6379: breaker, failure, fault
    Guard "logins" --------+              ---- Server 10.0.0.6:6379 (in a cluster)
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from bot_ratelimit.errors import (
    ConfigError,
    NotConnectedError,
    QueueFullError,
    StorageError,
    printable,
)
from bot_ratelimit.storage.base import ConnectionStatus, Count, ServerEvents, Storage
from bot_ratelimit.storage.breaker import Breaker
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T")
Admitted: TypeAlias = "tuple[Server, int]"
"""A server that may be asked, and the ticket of its breaker."""

FAULT_HOLDS: Final = 60.0
"""Seconds for which a fault is a problem: nobody may ask the same again when it is repaired."""
_TELLS_MORE: Final = frozenset({"auth", "tls", "dns"})
"""Kinds of failures that are logged even during an outage: somebody has to do something else."""
_SAYS_NOTHING: Final = {"not_connected"}
"""The kind of a failure while the first attempt to connect lasts: its reason is logged, too."""


class Missing(Enum):
    """Why there is no answer."""

    NOT_ASKED = "nothing was sent"
    UNKNOWN = "it is unknown whether the storage did what it was asked"


@dataclass(slots=True)
class Failure:
    """Failures of a server since its last answer."""

    since: float
    counts: Sequence[Count]
    """What it could not decide first."""
    reason: str
    """Of the last failure."""
    logged: set[str] = field(default_factory=set)
    """The kinds of errors that are in the log."""
    is_outage: bool = False
    """Whether the server is out of reach; a single late answer is no outage."""


@dataclass(slots=True)
class Server:
    """What this process knows of one server."""

    name: str
    breaker: Breaker = field(default_factory=Breaker)
    failure: Failure | None = None
    fault: tuple[float, str] = -math.inf, ""
    """When it last refused to decide something, although it answers, and why."""

    def outage(self) -> Failure | None:
        """Its failure, if it is out of reach."""
        return self.failure if self.failure and self.failure.is_outage else None

    def fault_at(self, now: float) -> str:
        """What it has refused lately; empty if there is nothing."""
        since, problem = self.fault
        return problem if now < since + FAULT_HOLDS else ""

    def problem(self, now: float) -> str:
        """Why it decides nothing, or not everything; empty if it does."""
        outage = self.outage()
        return outage.reason if outage else self.fault_at(now)


class KeySpace:
    """The servers behind one key space, and everybody in this process who asks them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.servers: dict[str, Server] = {}
        self.guards: WeakKeyDictionary[Guard, None] = WeakKeyDictionary()
        self.is_failing = False
        """Whether any server has failed since its last answer."""
        self.seldom = Seldom(clock=clock)

    def server(self, name: str) -> Server:
        """The server of this name."""
        return self.servers.get(name) or self.servers.setdefault(name, Server(name))

    def used(self) -> list[Guard]:
        """The guards that have asked, in the order in which they were made."""
        return [each for each in self.guards if each.is_used]

    def events(self) -> Sequence[ServerEvents]:
        """Everybody who is told of outages, once."""
        return [*{id(each): each for guard in self.used() for each in guard.events}.values()]


_key_spaces: Final[WeakValueDictionary[Hashable, KeySpace]] = WeakValueDictionary()


class Guard:
    """Asks a storage for one part of the bot, and says when it has no answer.

    Args:
        storage: What is asked.
        part: Which part of the bot asks, in a word of the log: `"updates"`.
        consequence: What happens there without an answer, for the log.
        timeout: Seconds that it waits for an answer.
        clock: Seconds from any starting point; for the pauses between attempts.
        events: Are told of failures and outages.
    """

    def __init__(
        self,
        storage: Storage,
        part: str,
        consequence: str,
        *,
        timeout: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        events: Sequence[ServerEvents] = (),
    ) -> None:
        self.part = part
        self.timeout = timeout
        self.events = events
        self.is_used = False
        """Whether it has asked, so that an outage concerns it."""
        self._storage = storage
        self.consequence = consequence
        self._clock = clock
        # With the clock, because times of two clocks cannot be compared.
        name = storage.key_space, clock
        space = _key_spaces.get(name)
        self._space = space or _key_spaces.setdefault(name, KeySpace(clock))
        self._space.guards[self] = None

    def admit(self, counts: Sequence[Count]) -> Admitted | None:
        """Return a ticket to ask the server of these counts; None if it must not be asked now.

        The caller reports the result with it: `answered` or `failed`.
        """
        self.is_used = True
        name = self._storage.server(counts)
        server = self._space.servers.get(name) or self._space.server(name)
        ticket = server.breaker.admit(self._clock)
        return None if ticket is None else (server, ticket)

    def answered(self, admitted: Admitted) -> None:
        """Note that the server has answered."""
        if not self._space.is_failing:
            return
        server, ticket = admitted
        used = self._space.used()
        if server.breaker.succeeded(ticket) and not any(
            # Others may need another second to connect again: their failures belong to this outage.
            each.last_error
            for guard in used
            for each in guard._connections(server)
        ):
            self._recovered(server)

    def failed(self, admitted: Admitted, counts: Sequence[Count], error: BaseException) -> Missing:
        """Note that there is no answer, and return why; raise if the caller was cancelled."""
        server, ticket = admitted
        breaker = server.breaker
        if not isinstance(error, Exception):
            breaker.abandoned(ticket)
            raise error
        kind = getattr(error, "kind", type(error).__name__)
        if kind != "closed":  # on purpose
            for each in self.events:
                each.storage_failed(server.name, kind)
        if not isinstance(error, StorageError):
            if isinstance(error, ConfigError) and kind != ConfigError.kind:
                self.answered(admitted)  # the server has refused, so it is there
            else:
                breaker.succeeded(ticket)  # to ask less often would not help
            self._note_fault(server, error, kind)
            return Missing.UNKNOWN
        if isinstance(error, QueueFullError) or kind == "closed":
            breaker.abandoned(ticket)
            if kind != "closed" and self._space.seldom("queue full"):
                text = "Too many decisions at once: %s. For these, %s"
                log.warning(text, _reason(error), self.consequence)
        elif isinstance(error, NotConnectedError):
            breaker.abandoned(ticket)
            self._note_failure(server, counts, error)
        else:
            if breaker.failed(ticket, self._clock()):
                for each in self._space.events():
                    each.breaker_changed(server.name, True)
            self._note_failure(server, counts, error)
        sent = not isinstance(error, (NotConnectedError, QueueFullError))
        return Missing.UNKNOWN if sent else Missing.NOT_ASKED

    async def run(
        self,
        counts: Sequence[Count],
        call: Callable[..., Awaitable[T]],
        *args: Any,
        deadline: Deadline | None = None,
        timeout: float | None = None,
    ) -> T | Missing:
        """Make a call to the server of these counts, unless it is known not to answer.

        `call` is a method of the storage, or of a part of it, that takes a `timeout` in seconds:
        what is left until the deadline, or else this one, or that of the guard. Without an answer
        this is `Missing`.
        """
        left, began = timeout or self.timeout, 0.0
        if deadline is not None:
            left, began = deadline.left(), time.monotonic()
        admitted = self.admit(counts) if left else None
        if admitted is None:
            return Missing.NOT_ASKED
        answer: T | Missing
        try:
            answer = await call(*args, timeout=left)
        except BaseException as error:
            answer = self.failed(admitted, counts, error)
        else:
            self.answered(admitted)
        if deadline is not None:
            deadline.waited(began, answered=not isinstance(answer, Missing))
        return answer

    def wait(self, counts: Sequence[Count]) -> float:
        """Seconds until the server of these counts is asked again; 0.0 if it is asked now."""
        return self._space.server(self._storage.server(counts)).breaker.wait(self._clock())

    def is_out(self, counts: Sequence[Count]) -> bool:
        """Whether the server of these counts is known to be out of reach."""
        server = self._space.servers.get(self._storage.server(counts))
        return server is not None and server.outage() is not None

    def servers(self) -> dict[str, Server]:
        """All servers that were asked so far, by name."""
        return dict(self._space.servers)

    def now(self) -> float:
        """The time of failures and faults."""
        return self._clock()

    def _connections(self, server: Server) -> list[ConnectionStatus]:
        """The connection of its storage to a server, if there is one."""
        return [each for each in self._storage.status() if each.server == server.name]

    def _note_fault(self, server: Server, error: Exception, kind: str) -> None:
        """Keep and log what a server refuses until something is changed."""
        expected = isinstance(error, ConfigError)
        problem = printable(str(error) if expected else repr(error))
        server.fault = self._clock(), problem
        if kind == ConfigError.kind:  # no Redis error code: only the text identifies the error
            kind = str(error)[:200]
        if self._space.seldom(f"{server.name} {self.part} {kind}"):
            log.error(
                "%s rate limit check failed: %s. Until that is fixed, %s",
                self._storage.title,
                problem,
                self.consequence,
                exc_info=None if expected else error,
            )

    def _note_failure(self, server: Server, counts: Sequence[Count], error: StorageError) -> None:
        """Keep a failure; log the beginning of an outage and its reason, a late answer seldom."""
        space, kind, is_connecting = self._space, error.kind, isinstance(error, NotConnectedError)
        space.is_failing = True
        failure = server.failure = server.failure or Failure(self._clock(), counts, "")
        failure.reason = _reason(error)
        if not failure.is_outage and (is_connecting or not server.breaker.closed):
            failure.is_outage = True
            for each in space.events():
                each.outage_began(server.name, kind)
        if not failure.logged:
            if not failure.is_outage and not space.seldom(f"{server.name} {kind}"):
                return
        elif kind in failure.logged or not (kind in _TELLS_MORE or failure.logged == _SAYS_NOTHING):
            return
        failure.logged.add(kind)
        log.error(
            "%s rate limit check failed: %s.%s Until %s answers, %s",
            self._storage.title,
            failure.reason,
            " The bot tries to connect about every second." if is_connecting else "",
            self._storage.title,
            "; ".join(dict.fromkeys(guard.consequence for guard in space.used())),
            exc_info=error.bug,
        )

    def _recovered(self, server: Server) -> None:
        """Log that a server answers, also if it replaces a server that failed.

        In a cluster another node may have taken over, and the failed one is never asked again.
        """
        space, now = self._space, self._clock()
        for failed in list(space.servers.values()):
            failure, replaced = failed.failure, failed is not server
            if failure is None or (
                replaced and self._storage.server(failure.counts) != server.name
            ):
                continue
            failed.failure = None
            seconds = now - failure.since
            if failure.logged:
                log.warning(
                    "%s answers again after %.1f s: limits hold on every instance (%s; %s)",
                    self._storage.title,
                    seconds,
                    f"{server.name}, asked instead of {failed.name}" if replaced else server.name,
                    ", ".join(dict.fromkeys(guard.part for guard in space.used())),
                )
            for each in space.events() if failure.is_outage else ():
                each.breaker_changed(failed.name, False)
                each.outage_ended(failed.name, seconds)
            if replaced:
                del space.servers[failed.name]
        space.is_failing = any(each.failure for each in space.servers.values())


def _reason(error: StorageError) -> str:
    return printable(str(error).rstrip("."))
