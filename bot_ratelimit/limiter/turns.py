"""Turns: a process with many waiters leaves slots to other processes from time to time.

A slot that is released is passed on within the process at once, while other processes ask a few
times a second. Without turns they would never find it free.
"""

from __future__ import annotations

from typing import Final

from cachetools import LRUCache

LONGEST_POLL: Final = 0.5
"""The longest pause in seconds between two attempts of a process that waits for a slot."""
PAUSE: Final = 1.1 * LONGEST_POLL
"""Seconds for which a process asks for no slot after its turn: every other one asks meanwhile."""
_FIRST, _LONGEST = 1.0, 16.0
"""The length of a turn in seconds. It doubles as long as no other process takes a slot."""
_MAX_KEYS: Final = 10_000


class _Turn:
    """Since when a process takes slots again and again, and until when it may."""

    __slots__ = ("ends", "held", "length", "released")

    def __init__(self, length: float, now: float) -> None:
        self.length = length
        self.ends = now + length
        self.held = 0
        self.released = now


class Turns:
    """The turns of a process, by key. Times are seconds from any starting point."""

    def __init__(self) -> None:
        self._turns: LRUCache[str, _Turn] = LRUCache(_MAX_KEYS)

    def granted(self, key: str, now: float) -> None:
        """Note that this process has taken a slot."""
        turn = self._current(key, now)
        if turn is None:
            turn = self._turns[key] = _Turn(_FIRST, now)
        turn.held += 1

    def released(self, key: str, now: float) -> None:
        """Note that this process has released a slot."""
        turn = self._turns.get(key)
        if turn is not None:
            turn.held = max(0, turn.held - 1)
            turn.released = now

    def is_over(self, key: str, now: float) -> bool:
        """Whether this process should not ask for a slot for `PAUSE` seconds."""
        turn = self._current(key, now)
        return turn is not None and now >= turn.ends

    def resumed(self, key: str, now: float, *, granted: bool) -> None:
        """Note the first answer after a pause: whether there was still a free slot."""
        turn = self._turns.get(key)
        if turn is not None:
            turn.length = min(2 * turn.length, _LONGEST) if granted else _FIRST
            turn.ends = now + turn.length

    def _current(self, key: str, now: float) -> _Turn | None:
        """The turn of this process; None if other processes have found the slots free since."""
        turn = self._turns.get(key)
        if turn is None or (not turn.held and now - turn.released > 2 * PAUSE):
            return None
        return turn
