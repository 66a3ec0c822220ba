"""Leases: who holds a slot, until the lease expires unless it is renewed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

Action: TypeAlias = Literal["acquire", "renew", "release"]

_SWEEP: Final = 10_000
"""The number of keys in memory above which expired leases are removed."""


class Claim(NamedTuple):
    """A claim on one of the slots under a key."""

    key: str
    token: str
    """Identifies the claim."""
    amount: int
    """How many slots there are."""
    lease: float
    """The duration of the lease in seconds, unless it is renewed."""


class Grant(NamedTuple):
    """The answer to a claim."""

    granted: bool
    """Whether the claim holds a slot; for a renewal, whether it has held it without
    interruption."""
    remaining: int
    """Slots that are free now."""
    wait: float
    """If refused, seconds until the next lease ends."""


class Leases(Protocol):
    """Keeps leases, by one clock for all instances."""

    async def claim(self, action: Action, claim: Claim, *, timeout: float) -> Grant:
        """Acquire, renew or release a slot, atomically; it may be repeated with the same token.

        Raises:
            StorageError: The storage is unreachable; it is unknown whether the action was done.
            ConfigError: The storage refuses the command.
        """
        ...


class MemoryLeases(Leases):
    """Leases in this process, by this clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, dict[str, float]] = {}  # the end of each token's lease, by key

    async def claim(self, action: Action, claim: Claim, *, timeout: float) -> Grant:
        """See `Leases.claim`. It never waits, so it never times out."""
        now = self._clock()
        held = self._valid(claim.key, now)
        was_held = held.pop(claim.token, None) is not None
        free = len(held) < claim.amount
        granted = action != "release" and (was_held or (action == "acquire" and free))
        if granted or (action == "renew" and free):
            held[claim.token] = now + claim.lease
        if held:
            self._held[claim.key] = held
            self._sweep(now)
        else:
            self._held.pop(claim.key, None)
        wait = 0.0
        if action == "acquire" and not granted:
            wait = sorted(held.values())[len(held) - claim.amount] - now
        return Grant(granted, max(0, claim.amount - len(held)), wait)

    def _valid(self, key: str, now: float) -> dict[str, float]:
        return {token: end for token, end in self._held.get(key, {}).items() if end > now}

    def _sweep(self, now: float) -> None:
        if len(self._held) > _SWEEP:
            self._held = {key: held for key in self._held if (held := self._valid(key, now))}
