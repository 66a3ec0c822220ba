"""A fixed window without a script, for servers that refuse scripts: INCR, TTL and EXPIRE in MULTI.

`EXPIRE ... NX` needs Redis 7, so `SET key 0 PX ms NX` opens the window instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from bot_ratelimit.algorithms.algorithms import Verdict
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Algorithm, Limit
from bot_ratelimit.storage.base import Ask, Op
from bot_ratelimit.storage.redis import encoding
from bot_ratelimit.storage.redis.encoding import Command


def needs_script(hit: Ask) -> ConfigError | None:
    """Return why only the script can decide this hit; None if a transaction can."""
    charge = hit.counts[0]
    if hit.op is Op.RESET:
        return None
    if hit.op in (Op.CHARGE, Op.REFUND):
        what = "a charge afterwards" if hit.op is Op.CHARGE else "a refund"
    elif hit.once is not None:
        what = "one verdict for several hits (once)"
    elif len(hit.counts) > 1:
        what = "deciding several rules together"
    elif charge.limit.algorithm is not Algorithm.FIXED_WINDOW:
        what = f"a {charge.limit.algorithm.value}"
    elif charge.penalty is not None:
        what = "a penalty"
    elif charge.cost > 1:
        what = f"a cost of {charge.cost}"
    else:
        return None
    # Without the keys, which may contain anything, so that the same error of many users is logged
    # once.
    limits = ", ".join(str(charge.limit) for charge in hit.counts)
    error = ConfigError(
        f"{what} ({limits}) needs a script, and this server refuses EVALSHA; allow it "
        "(ACL SETUSER <user> +@scripting), or limit with one fixed window such as '5/10s'"
    )
    error.kind = "noscript"
    return error


def commands(hit: Ask) -> list[Command]:
    """Encode the hit as a MULTI/EXEC of its own, so that its errors do not affect other hits.

    Returns:
        The commands; none for a hit that only a script can decide.
    """
    if needs_script(hit):
        return []
    if hit.op is Op.RESET:
        names = [encoding.encode_key(charge.key) for charge in hit.counts]
        pairs = [((b"PTTL", each), (b"DEL", each)) for each in names]
        return [(b"MULTI",), *chain.from_iterable(pairs), (b"EXEC",)]
    key, limit = hit.counts[0][:2]
    name = encoding.encode_key(key)
    if hit.op is Op.PEEK:
        return [(b"MULTI",), (b"GET", name), (b"PTTL", name), (b"EXEC",)]
    opened: Command = (b"SET", name, b"0", b"PX", _lifetime(limit), b"NX")
    return [(b"MULTI",), opened, (b"INCR", name), (b"PTTL", name), (b"EXEC",)]


def answer(hit: Ask, replies: Sequence[Any]) -> list[Verdict] | Exception:
    """Decode the replies to the hit: its verdicts, or the first error."""
    error = needs_script(hit) or _error(replies)
    if error is not None:
        return error
    if hit.op is Op.RESET:
        return _reset_verdicts(hit, replies[-1])
    key, limit = hit.counts[0][:2]
    count, left_ms = _count(replies)
    if _is_foreign(hit, count):
        return encoding.wrong_type(key)
    if not 0 < left_ms <= limit.period_ms:
        left_ms = limit.period_ms
    over = count >= limit.amount if hit.op is Op.PEEK else count > limit.amount
    left = left_ms * 1_000 if count else 0
    return [Verdict(left if over else 0, max(0, limit.amount - count), left)]


def repairs(hit: Ask, replies: Sequence[Any]) -> list[Command]:
    """Return the commands that repair a key.

    An EXPIRE for a TTL that was missing or longer than the window; and a DECR for a number that is
    not our counter, so that it gets its old value back.
    """
    if not replies or hit.op is Op.PEEK or hit.op is Op.RESET or _error(replies) is not None:
        return []
    key, limit = hit.counts[0][:2]
    count, left_ms = _count(replies)
    if _is_foreign(hit, count):
        return [(b"DECR", encoding.encode_key(key))]
    if 0 < left_ms <= limit.period_ms:
        return []
    return [(b"PEXPIRE", encoding.encode_key(key), _lifetime(limit))]


def _lifetime(limit: Limit) -> bytes:
    """The TTL: a millisecond less, because a key still exists in the one in which it expires."""
    return b"%d" % max(1, limit.period_ms - 1)


def _reset_verdicts(hit: Ask, replies: Sequence[Any]) -> list[Verdict]:
    left, deleted = replies[::2], replies[1::2]
    return [
        Verdict(0, charge.limit.capacity, max(1, ttl_ms) * 1_000 if there else 0)
        for charge, ttl_ms, there in zip(hit.counts, left, deleted, strict=True)
    ]


def _is_foreign(hit: Ask, count: int) -> bool:
    return not (0 if hit.op is Op.PEEK else 1) <= count < encoding.MAX_COUNT


def _count(replies: Sequence[Any]) -> tuple[int, int]:
    """The counter, and the milliseconds until its window ends."""
    *_, count, ttl_ms = replies[-1]
    return int(count or 0), int(ttl_ms) + 1


def _error(replies: Sequence[Any]) -> Exception | None:
    # EXEC comes last, and its error for a command that was refused when queued says the least.
    last = replies[-1] if replies else []
    for reply in (*replies[:-1], *(last if isinstance(last, list) else (last,))):
        if isinstance(reply, Exception):
            return reply
    return None
