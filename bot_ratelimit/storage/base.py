"""Storage: what is asked of a storage, and what every storage promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Sequence
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.storage.banlist import BanList
from bot_ratelimit.storage.documents import Documents
from bot_ratelimit.storage.leases import Leases
from bot_ratelimit.storage.tallies import Tallies

ONCE_MS = 60_000
"""How long hits with the same token share a verdict, in milliseconds."""


class Count(NamedTuple):
    """One rule of a question: the count under a key, its limit, and what a hit costs."""

    key: str
    limit: Limit
    cost: int = 1
    shadow: bool = False
    penalty: Penalty | None = None
    """Set for a count of refusals, which is charged if the hit is refused, not if it is allowed."""


# The same as the constructor in half of the time: one Count is made for every hit.
new_count: Final[Callable[[tuple[str, Limit, int, bool, Penalty | None]], Count]] = partial(
    tuple.__new__, Count
)


class Op(Enum):
    """What is done with the counts of an `Ask`."""

    HIT = "hit"
    """Decide about a hit and charge it; the verdicts say what it got."""
    PEEK = "peek"
    """Answer what a hit would get, without charging or counting anything.

    `remaining` and `reset` are those before the hit. For a penalty they are those after the hit, so
    that the answer includes a ban that the hit would cause."""
    CHARGE = "charge"
    """Charge each cost even above the limit; the verdicts are those of a next hit of cost 1."""
    REFUND = "refund"
    """Give each cost back as far as it still counts; the verdicts are those of a next hit of cost
    1."""
    RESET = "reset"
    """Delete the counts, also by algorithms that the storage cannot decide by; of the verdicts only
    `reset` matters, which is above 0 for each count that existed."""


class Ask(NamedTuple):
    """One question to a storage: what is done with which counts, decided together."""

    counts: Sequence[Count]
    """One for each rule that applies; no two with the same key. Without penalties for CHARGE and
    REFUND."""
    op: Op = Op.HIT
    once: str | None = None
    """For HIT: a key that stores the verdicts for 60 s. Further hits with this key get the same
    verdicts, with the elapsed time subtracted, and charge nothing."""


new_ask: Final[Callable[[tuple[Sequence[Count], Op, str | None]], Ask]] = partial(
    tuple.__new__, Ask
)


class ServerEvents:
    """Is told how the servers of a storage are; an `Observer` is one."""

    def storage_failed(self, server: str, kind: str) -> None:
        """The storage did not answer about a decision; `kind` is that of `StorageError`."""

    def outage_began(self, server: str, kind: str) -> None:
        """A server stopped answering; the policy (`on_error`) answers for it."""

    def outage_ended(self, server: str, seconds: float) -> None:
        """A server answers again, after an outage of `seconds`."""

    def breaker_changed(self, server: str, is_open: bool) -> None:
        """The circuit breaker of a server opened, or closed."""

    def connected(self, server: str) -> None:
        """The connection to a server was opened."""

    def disconnected(self, server: str) -> None:
        """The connection was lost or could not be opened; it is tried again."""

    def closed(self, server: str) -> None:
        """The connection was closed on purpose; nothing more is reported about it."""

    def waiting(self, place: str, count: int) -> None:
        """`count` callers wait now; `place` is the server that they wait for, or `"acquire"`."""

    def batch_answered(self, server: str, size: int, seconds: float) -> None:
        """A command with `size` decisions was answered after `seconds`."""


class ConnectionStatus(NamedTuple):
    """The state of the connection to a server, as far as its storage knows without asking."""

    server: str
    is_open: bool
    latency: float | None
    """The latency of the last answer in seconds; None before the first."""
    uses_script: bool
    """False if the server refuses scripts, so that MULTI/EXEC decides."""
    last_error: str
    """Why the last attempt to connect failed; empty if it succeeded."""


class Storage(ABC):
    """Keeps counts and decides about hits on them. A custom storage derives from this class.

    Only `ask` and `source` are needed. What else a storage can do, it says by overriding the other
    methods; a feature that needs more than the storage has raises a ConfigError that names both.

    - **Atomic.** A hit is decided as if no other hit happened at the same time, on any instance.
      Either all its charges are made or none; shadow charges do not take part in that decision.
    - **At most once.** A storage never repeats a hit whose outcome it does not know.
    - **In time.** A call answers within `timeout` seconds or raises StorageError.
    - **One clock.** Time is the storage's own, so that instances with different clocks agree.
    - **Everything expires.** What is kept expires with the limit it belongs to.
    - **Limits may change.** A limit that finds the count of another limit under its key continues
      it, and makes no window longer than its own period.

    All methods raise StorageError if the storage is unreachable, too slow or cannot serve now, and
    ConfigError if it refuses until a setting is changed.
    """

    source: str
    """The name of this storage in `Decision.source`, for example `"redis"`; `"memory"` is for
    storages of one process."""

    @property
    def title(self) -> str:
        """What the log calls it: Redis, or its source."""
        return "Redis" if self.source == "redis" else self.source

    @abstractmethod
    def ask(self, ask: Ask, *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        """Answer within `timeout` seconds: one verdict for each count, in the same order."""

    # -- the servers behind it --------------------------------------------------------------------

    @property
    def key_space(self) -> Hashable:
        """Equal for storages that share their keys, such as two clients of one server."""
        return id(self)

    def server(self, counts: Sequence[Count]) -> str:
        """Return the name of the server that decides about these counts, as in logs.

        Servers fail independently: each has its own circuit breaker.
        """
        return type(self).__name__

    def status(self) -> Sequence[ConnectionStatus]:
        """Return the state of the connections, one for each server; empty without connections."""
        return ()

    def observe(self, events: ServerEvents) -> None:  # noqa: B027 - optional
        """Tell `events` of connections and batches, too, if there are any."""

    def open(self) -> None:  # noqa: B027 - optional
        """Start to connect in the background; otherwise the first call does. Never raises."""

    async def close(self) -> None:  # noqa: B027 - optional
        """Close what the storage itself opened. It may be called twice, and used again."""

    # -- what it keeps besides counts; ConfigError if it does not ---------------------------------

    def leases(self) -> Leases:
        """Return the leases of slots; all limiters of this storage share them."""
        raise self._unsupported("slots", "leases()")

    def bans(self, prefix: str) -> BanList:
        """Return the list of bans of a key prefix; all limiters of this storage share it."""
        raise self._unsupported("bans", "bans()")

    def documents(self) -> Documents:
        """Return the documents: live limits, history, audit, and collected messages."""
        raise self._unsupported("live limits, administration and collect", "documents()")

    def tallies(self, prefix: str) -> Tallies:
        """Return the statistics of a key prefix."""
        raise self._unsupported("statistics", "tallies()")

    def _unsupported(self, feature: str, method: str) -> ConfigError:
        return ConfigError(
            f"storage is a {type(self).__name__}, which does not support {feature}: use "
            f"RedisStorage or MemoryStorage, or override {method} in the custom storage"
        )
