"""Decision: the answer to "may this event be handled now?"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from bot_ratelimit.rule import Rule

Source = Literal["redis", "memory", "policy"]


class Decision(NamedTuple):
    """The answer, and what a handler or a notice may want to say about it.

    With `5/10s` and a third hit two seconds after the first, everything allowed:
    `remaining` is 2, `retry_after` 0.0 and `reset_after` 8.0. The sixth hit, three seconds
    after the first, is refused: `remaining` is 0, `retry_after` and `reset_after` are 7.0.
    """

    allowed: bool
    """Whether to go on."""
    rule: Rule
    """Of several rules the one that refuses (the longest `retry_after`), else the tightest."""
    remaining: int
    """How much more could be charged at this instant; where nothing is known, as much as ever."""
    retry_after: float
    """Seconds after which the same hit would be allowed; 0.0 if this one was."""
    reset_after: float
    """Seconds until nothing of the past counts any more."""
    source: Source
    """Who answered: `"redis"`, `"memory"`, or `"policy"` when neither could."""
    shadow: tuple[Rule, ...] = ()
    """The shadow rules that would have refused."""
    banned: bool = False
    """Whether a `Penalty` refuses, alone or beside other rules."""
