"""One fixed window without a script, for servers that refuse them: INCR, TTL and EXPIRE in MULTI.

`EXPIRE ... NX` would need Redis 7, so the window is opened by `SET key 0 PX ms NX` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limit import Algorithm
from bot_ratelimit.storage import encoding
from bot_ratelimit.storage.encoding import Command, Hit


def needs_script(hit: Hit) -> ConfigError | None:
    """Why only the script can decide this hit; None if a transaction can."""
    charge = hit.charges[0]
    if hit.reset:
        return None
    if hit.adjust:
        what = "a charge afterwards" if hit.adjust == "+" else "a refund"
    elif hit.once is not None:
        what = "one verdict for several hits (once)"
    elif len(hit.charges) > 1:
        what = "deciding several rules together"
    elif charge.limit.algorithm is not Algorithm.FIXED_WINDOW:
        what = f"a {charge.limit.algorithm.value}"
    elif charge.penalty is not None:
        what = "a penalty"
    elif charge.cost > 1:
        what = f"a cost of {charge.cost}"
    else:
        return None
    # Without keys: the same fault of many users is logged once, and a key may hold anything.
    limits = ", ".join(str(charge.limit) for charge in hit.charges)
    error = ConfigError(
        f"{what} ({limits}) needs a script, and this server refuses EVALSHA; allow it "
        "(ACL SETUSER <user> +@scripting), or limit with one fixed window such as '5/10s'"
    )
    error.kind = "noscript"
    return error


def commands(hit: Hit) -> list[Command]:
    """The hit as a MULTI/EXEC of its own, so that its errors are its own too.

    None for a hit that only a script can decide.
    """
    if needs_script(hit):
        return []
    if hit.reset:
        names = [encoding.encode_key(charge.key) for charge in hit.charges]
        pairs = [((b"PTTL", each), (b"DEL", each)) for each in names]
        return [(b"MULTI",), *chain.from_iterable(pairs), (b"EXEC",)]
    key, limit = hit.charges[0][:2]
    name = encoding.encode_key(key)
    if hit.peek:
        return [(b"MULTI",), (b"GET", name), (b"PTTL", name), (b"EXEC",)]
    # A key still answers in the very millisecond in which it expires, so it expires one earlier.
    lifetime = b"%d" % max(1, limit.period_ms - 1)
    opened: Command = (b"SET", name, b"0", b"PX", lifetime, b"NX")
    return [(b"MULTI",), opened, (b"INCR", name), (b"PTTL", name), (b"EXEC",)]


def answer(hit: Hit, replies: Sequence[Any]) -> list[Verdict] | Exception:
    """What the replies say to the hit, or the first error among them."""
    error = needs_script(hit) or _error(replies)
    if error is not None:
        return error
    if hit.reset:
        return _reset_verdicts(hit, replies[-1])
    key, limit = hit.charges[0][:2]
    count, left_ms = _count(replies)
    if _is_foreign(hit, count):
        return encoding.wrong_type(key)
    if not 0 < left_ms <= limit.period_ms:
        left_ms = limit.period_ms
    over = count >= limit.amount if hit.peek else count > limit.amount
    left = left_ms * 1_000 if count else 0
    return [Verdict(left if over else 0, max(0, limit.amount - count), left)]


def repairs(hit: Hit, replies: Sequence[Any]) -> list[Command]:
    """The EXPIRE that a key needs whose TTL was missing or longer than the window.

    A number that is no counter of ours is put back as it was found.
    """
    if not replies or hit.peek or hit.reset or _error(replies) is not None:
        return []
    key, limit = hit.charges[0][:2]
    count, left_ms = _count(replies)
    if _is_foreign(hit, count):
        return [(b"DECR", encoding.encode_key(key))]
    if 0 < left_ms <= limit.period_ms:
        return []
    return [(b"PEXPIRE", encoding.encode_key(key), b"%d" % limit.period_ms)]


def _reset_verdicts(hit: Hit, replies: Sequence[Any]) -> list[Verdict]:
    left, deleted = replies[::2], replies[1::2]
    return [
        Verdict(0, charge.limit.capacity, max(1, ttl_ms) * 1_000 if there else 0)
        for charge, ttl_ms, there in zip(hit.charges, left, deleted, strict=True)
    ]


def _is_foreign(hit: Hit, count: int) -> bool:
    return not (0 if hit.peek else 1) <= count < encoding.MAX_COUNT


def _count(replies: Sequence[Any]) -> tuple[int, int]:
    """The counter, and how many milliseconds are left of its window."""
    *_, count, ttl_ms = replies[-1]
    return int(count or 0), int(ttl_ms) + 1


def _error(replies: Sequence[Any]) -> Exception | None:
    # EXEC comes last; what it says of a command that was refused when queued is the least telling.
    last = replies[-1] if replies else []
    for reply in (*replies[:-1], *(last if isinstance(last, list) else (last,))):
        if isinstance(reply, Exception):
            return reply
    return None
