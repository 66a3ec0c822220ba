"""The Storage protocol: what every storage promises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol

from bot_ratelimit.algorithms.algorithms import Verdict
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty

ONCE_MS = 60_000
"""How long hits with the same token share a verdict, in milliseconds."""


class Charge(NamedTuple):
    """One rule of a hit: what is charged, and to which count."""

    key: str
    limit: Limit
    cost: int = 1
    shadow: bool = False
    penalty: Penalty | None = None
    """Set for a count of refusals, which is charged if the hit is refused, not if it is allowed."""


# The same as the constructor in half of the time: one Charge is made for every hit.
new_charge: Final[Callable[[tuple[str, Limit, int, bool, Penalty | None]], Charge]] = partial(
    tuple.__new__, Charge
)


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


class Storage(Protocol):
    """Keeps counts and decides about hits on them. A custom storage implements this protocol.

    - **Atomic.** A hit is decided as if no other hit happened at the same time, on any instance.
      Either all its charges are made or none; shadow charges do not take part in that decision.
    - **At most once.** A storage never repeats a hit whose outcome it does not know.
    - **In time.** A call answers within `timeout` seconds or raises StorageError.
    - **One clock.** Time is the storage's own, so that instances with different clocks agree.
    - **Everything expires.** What is kept expires with the limit it belongs to.
    - **Limits may change.** A limit that finds the count of another limit under its key continues
      it, and makes no window longer than its own period. The count of another algorithm is ignored.
    - **A shadow charge never fails a hit.** If its key cannot be read, its verdict is `Undecided`.

    All methods raise StorageError if the storage is unreachable, too slow or cannot serve now, and
    ConfigError if it refuses until a setting is changed.
    """

    @property
    def source(self) -> Literal["redis", "memory"]:
        """The name of this storage in `Decision.source`."""
        ...

    def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> Awaitable[Sequence[Verdict]]:
        """Decide about a hit and charge it; return one verdict for each charge, in the same order.

        Args:
            charges: The rules that apply; no two with the same key.
            once: A key that stores the verdicts for 60 s. Further hits with this key get the same
                verdicts, with the elapsed time subtracted, and charge nothing.
            timeout: Seconds.
        """
        ...

    def peek(self, charges: Sequence[Charge], *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        """Return what `hit` would return now, without charging or counting anything.

        `remaining` and `reset` are those before the hit. For a penalty they are those after the
        hit, so that the answer includes a ban that the hit would cause.
        """
        ...

    def charge(self, charges: Sequence[Charge], *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        """Charge each cost even above the limit; return the verdicts of a next hit of cost 1.

        What exceeds a limit becomes a debt; `algorithms.debt` explains how.

        Args:
            charges: The rules that apply, without penalties; no two with the same key.
            timeout: Seconds.
        """
        ...

    def refund(
        self, charges: Sequence[Charge], *, age_us: int = 0, timeout: float
    ) -> Awaitable[Sequence[Verdict]]:
        """Refund each cost as far as it still counts; return the verdicts of a next hit of cost 1.

        Args:
            charges: The rules that apply, without penalties; no two with the same key.
            age_us: Microseconds since the charge. Whatever began after the charge is not refunded.
            timeout: Seconds.
        """
        ...

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Delete the counts under these keys; return how many of them existed.

        Verdicts that are shared by `once` on any of these keys are deleted too.
        """
        ...

    def server(self, charges: Sequence[Charge]) -> str:
        """Return the name of the server that decides about these charges, as in logs.

        Servers fail independently: each has its own circuit breaker.
        """
        ...

    def open(self) -> None:
        """Start to connect in the background; otherwise the first call does. Never raises."""
        ...

    async def close(self) -> None:
        """Close what the storage itself opened. It may be called twice."""
        ...
