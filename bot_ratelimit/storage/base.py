"""The Storage protocol: what every storage promises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.limit import Limit
from bot_ratelimit.penalty import Penalty

ONCE_MS = 60_000
"""How long hits with one token share a verdict, in milliseconds."""


class Charge(NamedTuple):
    """One rule of a hit: what is to be taken, from which count."""

    key: str
    limit: Limit
    cost: int = 1
    shadow: bool = False
    penalty: Penalty | None = None
    """Given for a count of refusals: charged when the hit is refused, not when it is allowed."""


# What the class does itself, for half of the time: one is made for every hit.
new_charge: Final[Callable[[tuple[str, Limit, int, bool, Penalty | None]], Charge]] = partial(
    tuple.__new__, Charge
)


class ConnectionStatus(NamedTuple):
    """How the connection to a server is, as its storage knows without asking."""

    server: str
    is_open: bool
    latency: float | None
    """Seconds that the last answer took; None before the first."""
    uses_script: bool
    """False where scripts are refused, and decisions are made by MULTI/EXEC."""
    last_error: str
    """Why the connection could not be opened the last time; empty if it could."""


class Storage(Protocol):
    """Keeps counts, and decides about hits on them.

    - **Atomic.** A hit is decided as if nothing else happened meanwhile, by whichever instance.
      All its charges are made or none is; a shadow charge has no say in that.
    - **At most once.** A storage never repeats a hit whose outcome it does not know.
    - **In time.** A call answers within `timeout` seconds or raises StorageError.
    - **One clock.** Time is the storage's own, so that instances with skewed clocks agree.
    - **Nothing stays.** What is kept expires with the limit it belongs to.
    - **Limits change.** A limit that finds the count of another one under its key takes it over,
      and makes no window longer than its own period; the count of another algorithm is none.
    - **A shadow charge never fails a hit.** If its key cannot be read, its verdict is `Undecided`.

    Raises, in every method: StorageError if the storage is out of reach, too slow or cannot serve
    now; ConfigError if it will not serve before somebody changes a setting.
    """

    @property
    def source(self) -> Literal["redis", "memory"]:
        """How a `Decision` names this storage."""
        ...

    def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> Awaitable[Sequence[Verdict]]:
        """Decide, charge, and say of every charge, in their order, what its rule says.

        Args:
            charges: The rules that apply; no two with the same key.
            once: A key under which the verdicts are kept for 60 s; further hits with it get
                them again, with the time that has passed taken off, and charge nothing.
            timeout: Seconds.
        """
        ...

    def peek(self, charges: Sequence[Charge], *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        """What `hit` would say now, with nothing charged or counted.

        `remaining` and `reset` are those before the hit, but of a penalty those after it: a look
        tells of the ban that the hit would bring on.
        """
        ...

    def charge(self, charges: Sequence[Charge], *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        """Take each cost whatever is left, and say what a hit of cost 1 would be told then.

        What a limit cannot grant becomes a debt; `bot_ratelimit.debt` says how it is paid.

        Args:
            charges: The rules that apply, without penalties; no two with the same key.
            timeout: Seconds.
        """
        ...

    def refund(
        self, charges: Sequence[Charge], *, age_us: int = 0, timeout: float
    ) -> Awaitable[Sequence[Verdict]]:
        """Give each cost back as far as it still counts, and say what a hit of cost 1 is told then.

        Args:
            charges: The rules that apply, without penalties; no two with the same key.
            age_us: Microseconds since the charge. What began after it is not touched.
            timeout: Seconds.
        """
        ...

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget what counts under these keys; return under how many of them something did.

        Verdicts that were kept for hits with `once` on any of these keys are forgotten too.
        """
        ...

    def server(self, charges: Sequence[Charge]) -> str:
        """Which server decides about these charges, as logs name it.

        Servers fail one by one: each has its own circuit breaker.
        """
        ...

    def open(self) -> None:
        """Begin to connect, in the background; without it the first call does. Never raises."""
        ...

    async def close(self) -> None:
        """Let go of what the storage itself opened. Safe to call twice."""
        ...
