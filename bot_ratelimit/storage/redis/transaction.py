"""A fixed window without a script, for servers that refuse scripts: INCR, TTL and EXPIRE in MULTI.

`EXPIRE ... NX` needs Redis 7, so `SET key 0 PX ms NX` opens the window instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Algorithm
from bot_ratelimit.storage.base import Ask, Op
from bot_ratelimit.storage.redis.encoding import Command, encode_key

_COUNT: Final = re.compile(rb"[0-9]{1,15}")


def needs_script(ask: Ask, allow: str) -> ConfigError | None:
    """Return why only the script can answer; None if MULTI can.

    MULTI can hit a single fixed window with a cost of 1, peek at it, and reset counts. `allow`
    says how to allow scripts on this server.
    """
    what = _beyond_multi(ask)
    if not what:
        return None
    # Without the keys, which may contain anything, so that the same error of many users is logged
    # once.
    limits = ", ".join(str(each.limit) for each in ask.counts)
    error = ConfigError(
        f"{what} ({limits}) needs a script, and this server refuses EVALSHA; {allow}, or limit "
        "with one fixed window such as '5/10s'"
    )
    error.kind = "noscript"
    return error


def _beyond_multi(ask: Ask) -> str:
    (_, limit, cost, _, penalty), *others = ask.counts
    reasons = {
        "a charge afterwards": ask.op is Op.CHARGE,
        "a refund": ask.op is Op.REFUND,
        "one verdict for several hits (once)": ask.once is not None,
        "deciding several rules together": bool(others),
        "a penalty": penalty is not None,
        f"a {limit.algorithm.value}": limit.algorithm is not Algorithm.FIXED_WINDOW,
        "a calendar window": bool(limit.zone),
        f"a cost of {cost}": cost > 1,
    }
    needed = (reason for reason, is_so in reasons.items() if is_so and ask.op is not Op.RESET)
    return next(needed, "")


def commands(ask: Ask) -> list[Command]:
    """Encode as a MULTI/EXEC of its own, so that its errors do not affect other hits."""
    inside: list[Command] = []
    for key, limit, *_ in ask.counts:
        name = encode_key(key)
        if ask.op is Op.RESET:
            inside.append((b"DEL", name))
        elif ask.op is Op.PEEK:
            inside += [(b"GET", name), (b"PTTL", name)]
        else:
            opened = (b"SET", name, b"0", b"PX", _lifetime(limit.period_ms), b"NX")
            inside += [opened, (b"INCR", name), (b"PTTL", name)]
    return [(b"MULTI",), *inside, (b"EXEC",)]


def read(ask: Ask, replies: Sequence[Any]) -> tuple[list[Verdict] | Exception, Command | None]:
    """Decode the replies.

    Returns:
        The verdicts, or the first error; and a command that gives a key its TTL, if it had none, or
        a longer one than the window.
    """
    results = replies[-1]
    # EXEC comes last, and its error for a command that was refused when queued says the least.
    for reply in (*replies[:-1], *(results if isinstance(results, list) else (results,))):
        if isinstance(reply, Exception):
            return reply, None
    if ask.op is Op.RESET:
        counted = zip(ask.counts, results, strict=True)
        return [Verdict(0, each.limit.capacity, deleted) for each, deleted in counted], None
    key, limit, *_ = ask.counts[0]
    found = results[-2]
    if isinstance(found, bytes) and not _COUNT.fullmatch(found):  # as INCR would say
        return exceptions.ResponseError("value is not an integer or out of range"), None
    count, left_ms, repair = int(found or 0), int(results[-1]) + 1, None
    if not 0 < left_ms <= limit.period_ms:
        left_ms = limit.period_ms
        if ask.op is Op.HIT:
            repair = (b"PEXPIRE", encode_key(key), _lifetime(left_ms))
    is_over = count + (ask.op is Op.PEEK) > limit.amount
    left = left_ms * 1_000 if count else 0
    return [Verdict(left if is_over else 0, max(0, limit.amount - count), left)], repair


def _lifetime(period_ms: int) -> bytes:
    """The TTL: a millisecond less, because a key still exists in the one in which it expires."""
    return b"%d" % max(1, period_ms - 1)
