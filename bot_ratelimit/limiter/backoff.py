"""Backoff: when a waiting process asks again, so that processes with a common limit take turns.

All processes learn the same moment at which the next unit of a limit becomes free. The one that
has waited longest asks first. The one that got the last unit asks last, so that no unit stays
unused if nobody else waits. After a refusal, a process leaves the next unit to the others.

::

    unit         1   2   3   4   5   6        x granted, o refused, . does not ask
    process A    x   o   .   x   o   .
    process B    .   x   o   .   x   o
    process C    o   .   x   o   .   x
"""

from __future__ import annotations

import math
import random
from typing import Final

JITTER: Final = 0.01
"""The longest random pause in seconds before a process asks; at most a quarter of the time between
two units."""
_LONGEST_JITTER: Final = 0.05
"""The same while other processes compete, if units are at least a second apart: a process whose
answers take longer than usual still gets its turn."""
_MAX_SKIPPED: Final = 2
_MAX_SPACING: Final = 1.0
"""If a process would wait for longer than this many seconds anyway, it does not skip any unit."""


class Backoff:
    """The turns of one process. It reads no clock.

    Args:
        chance: The source of random numbers.
    """

    __slots__ = ("_chance", "_competes", "_losses", "_missed", "_round_trip", "_was_told")

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()  # noqa: S311 - no secret
        self._round_trip = math.inf
        self._was_told = False
        self._losses = 0
        """How often in a row this process was too late, although it asked when it was told to."""
        self._missed = 0
        """The units that others got since this process got one."""
        self._competes = False

    def answered(self, took: float) -> None:
        """Note how long an answer of the storage took, in seconds."""
        self._round_trip = min(self._round_trip, took)

    def granted(self) -> None:
        """Note a grant: this process asks last for the next unit."""
        self._competes = self._losses > 0
        self._losses = self._missed = 0
        self._was_told = False

    def refused(self, wait: float, apart: float) -> None:
        """Note a refusal.

        Args:
            wait: The seconds that the storage said to wait.
            apart: The seconds between two units.
        """
        if self._was_told and not _was_early(wait, apart):
            self._losses += 1
            self._missed += 1

    def pause(self, wait: float, apart: float, spare: float = math.inf) -> float:
        """Return the seconds until the next question, counted from the last answer.

        The answer took time on its way, and the next question does too. The shortest round trip is
        subtracted, so that a process far from the server asks no later than one beside it.

        Args:
            wait: The seconds until the next unit, as the storage said.
            apart: The seconds between two units.
            spare: The seconds that the caller can wait beyond `wait`.
        """
        spare = max(spare, 0.0)
        skipped = self._skip(wait, apart)
        if skipped * apart > spare:
            skipped = int(spare / apart)
        self._missed += skipped
        self._was_told = True
        jitter = self._chance.uniform(0.5, 1) * self._longest_jitter(apart) / (1 + self._missed)
        lead = self._round_trip if self._round_trip < math.inf else 0.0
        return max(0.0, wait + min(skipped * apart + jitter, spare) - lead)

    def _skip(self, wait: float, apart: float) -> int:
        """How many units to leave to the others; only if units become free one at a time."""
        if not self._losses or wait > min(1.1 * apart, _MAX_SPACING) or _was_early(wait, apart):
            return 0
        return 1 if self._losses == 1 else self._chance.randint(0, _MAX_SKIPPED)

    def _longest_jitter(self, apart: float) -> float:
        if self._competes or self._losses:
            return min(apart / 4, max(JITTER, min(apart / 20, _LONGEST_JITTER)))
        return min(apart / 4, JITTER)


def _was_early(wait: float, apart: float) -> bool:
    """Whether a process came just before the unit, not after another one that got it."""
    return wait < apart / 4
