"""Guard: asks a storage, unless its server is known not to answer."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar

from bot_ratelimit.errors import NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.storage.base import Count, ServerEvents, Storage
from bot_ratelimit.storage.servers import Server, key_space_of, rules_in

T = TypeVar("T")
Admitted: TypeAlias = "tuple[Server, int]"
"""A server that may be asked, and the ticket of its breaker."""

_numbers: Final = count()


class Missing(Enum):
    """Why there is no answer."""

    NOT_ASKED = "nothing was sent"
    UNKNOWN = "it is unknown whether the storage did what it was asked"


class Guard:
    """Asks a storage for one part of the bot, and says when it has no answer.

    Args:
        storage: What is asked.
        part: Which part of the bot asks, in a word of the log: `"updates"`.
        consequence: Returns what happens there without an answer, for the log.
        timeout: Seconds that it waits for an answer.
        clock: Seconds from any starting point; for the pauses between attempts.
        events: Are told of failures and outages.
    """

    def __init__(
        self,
        storage: Storage,
        part: str,
        consequence: Callable[[], str],
        *,
        timeout: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        events: Sequence[ServerEvents] = (),
    ) -> None:
        self.part = part
        self.title = storage.title
        self.consequence = consequence
        self.timeout = timeout
        self.events = events
        self.is_used = False
        """Whether it has asked, so that an outage concerns it."""
        self._storage = storage
        self._clock = clock
        self._space = key_space_of(storage.key_space, clock)
        self._space.guards[next(_numbers)] = self

    def admit(self, counts: Sequence[Count]) -> Admitted | None:
        """Return a ticket to ask the server of these counts; None if it must not be asked now.

        The caller reports the result with it: `answered` or `failed`.
        """
        self.is_used = True
        name = self._storage.server(counts)
        server = self._space.servers.get(name) or self._space.server(name)
        ticket = server.breaker.admit(self._clock)
        return None if ticket is None else (server, ticket)

    def answered(self, admitted: Admitted, counts: Sequence[Count]) -> None:
        """Note that the server has answered."""
        server, ticket = admitted
        if server.is_troubled or self._space.is_failing:
            named = (each for each in self._storage.status() if each.server == server.name)
            latency = next((each.latency or 0.0 for each in named), 0.0)
            self._space.answered(server, ticket, counts, self, latency)

    def failed(self, admitted: Admitted, counts: Sequence[Count], error: BaseException) -> Missing:
        """Note that there is no answer, and return why; raise if the caller was cancelled."""
        server, ticket = admitted
        if not isinstance(error, Exception):
            server.breaker.abandoned(ticket)
            raise error
        if not isinstance(error, StorageError):
            self._space.rejected(server, ticket, error, counts, self)
            return Missing.UNKNOWN
        self._space.failed(server, ticket, error, counts, self)
        sent = not isinstance(error, (NotConnectedError, QueueFullError))
        return Missing.UNKNOWN if sent else Missing.NOT_ASKED

    async def run(
        self, counts: Sequence[Count], call: Callable[..., Awaitable[T]], *args: Any, **named: Any
    ) -> T | Missing:
        """Make a call to the server of these counts, unless it is known not to answer.

        Args:
            counts: What the call is about; they say which server answers.
            call: A method of the storage, or of a part of it.
            *args: Its arguments.
            **named: Its named arguments.

        Returns:
            The answer, or why there is none. It raises nothing else than a cancellation.
        """
        admitted = self.admit(counts)
        if admitted is None:
            return Missing.NOT_ASKED
        try:
            answer = await call(*args, **named)
        except BaseException as error:
            return self.failed(admitted, counts, error)
        self.answered(admitted, counts)
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
        """Note what a trial has found out about rules: a fault, or none."""
        server = self._space.server(self._storage.server(counts))
        if error is None:
            server.faults.pop((self.part, rules_in(counts)), None)
        elif not isinstance(error, StorageError):
            self._space.note_fault(server, counts, error, self)

    def servers(self) -> dict[str, Server]:
        """All servers that were asked so far, by name."""
        return dict(self._space.servers)

    def now(self) -> float:
        """The time of `Server.outage`."""
        return self._clock()
