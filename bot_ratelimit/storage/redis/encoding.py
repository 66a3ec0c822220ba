"""Encodes hits as arguments of decide.lua, and decodes its reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final

from bot_ratelimit.algorithms.algorithms import Undecided, Verdict, new_verdict
from bot_ratelimit.rules.limit import Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.storage.base import ONCE_MS, Ask, Op
from bot_ratelimit.storage.redis.faults import ServerText, translated

Command = Sequence[bytes]

_KINDS: Final = {
    Algorithm.FIXED_WINDOW: "f",
    Algorithm.SLIDING_WINDOW: "s",
    Algorithm.TOKEN_BUCKET: "b",
}
_ONCE_SPEC: Final = f"o& {ONCE_MS}".encode()
_RESETS_SPEC: Final = f"g {ONCE_MS}".encode()
_MORE_RESETS_SPEC: Final = f"g& {ONCE_MS}".encode()

MAX_COUNT: Final = 10**15
"""A counter from this value on is not ours; below it a double is exact."""
_FAILED: Final = -1
_UNDECIDED: Final = -2


_MODES: Final = {Op.HIT: "", Op.PEEK: "?", Op.CHARGE: "+", Op.REFUND: "-", Op.RESET: "!"}


def wrong_type(key: str) -> ServerText:
    """The error for a key that holds foreign data, in the words of the script."""
    return ServerText(f"WRONGTYPE '{key}' holds something else")


def encode_command(command: Command) -> bytes:
    """Encode a command in RESP, the protocol of Redis."""
    parts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"*%d\r\n%b" % (len(command), b"".join(parts))


def encode_key(key: str) -> bytes:
    """Encode a key; half a surrogate pair, which a custom id may contain, is kept."""
    return key.encode("utf-8", "surrogatepass")


def resets_key(key: str) -> str:
    """The key that numbers the resets of a count as long as shared verdicts on it may exist.

    For example `bot:ratelimit:once:{bot:ratelimit:42}`. On a cluster it is in the same slot as the
    count: by the hash tag of the prefix, or else by this one.
    """
    head, colon, _ = key.partition(":ratelimit:")
    return f"{head}{colon}once:{{{key}}}" if colon else f"once:{{{key}}}"


def script_arguments(hits: Sequence[Ask]) -> list[bytes]:
    """`numkeys key … arg …` for decide.lua: a key and a spec for each charge."""
    if len(hits) == 1 and len(hits[0].counts) == 1:
        counts, op, once, _ = hits[0]
        key, limit, cost, shadow, penalty = counts[0]
        if penalty is None and once is None and op is Op.HIT:  # usual on a cluster
            return [b"1", encode_key(key), _spec(limit, cost, shadow, "", False)]
    keys: list[bytes] = []
    specs: list[bytes] = []
    for charges, op, once, age_us in hits:
        if once is not None:
            keys.append(encode_key(once))
            specs.append(_ONCE_SPEC)
        mode = _MODES[op]
        shared = op is Op.RESET or once is not None
        # How many more keys belong to this hit.
        joined = 2 * len(charges) if shared else len(charges)
        for key, limit, cost, shadow, penalty in charges:
            joined -= 1
            keys.append(encode_key(key))
            if op is Op.REFUND:
                spec = _spec(limit, cost, shadow, mode, joined > 0)
                specs.append(b"%b %d" % (spec, age_us))
            elif penalty is None:
                specs.append(_spec(limit, cost, shadow, mode, joined > 0))
            else:
                specs.append(_penalty_spec(limit, penalty, mode, joined > 0))
        if shared:
            keys.extend(encode_key(resets_key(charge.key)) for charge in charges)
            specs.extend([_MORE_RESETS_SPEC] * (len(charges) - 1))
            specs.append(_RESETS_SPEC)
    return [b"%d" % len(keys), *keys, *specs]


def read_verdict(reply: bytes) -> Verdict:
    """Decode the verdict of decide.lua on one charge."""
    wait, remaining, reset = reply.split()
    return new_verdict((int(wait), int(remaining), int(reset)))


def read_answers(
    reply: bytes | str | list[bytes | str], hits: Sequence[Ask], where: Callable[[], str] = str
) -> Sequence[list[Verdict] | Exception]:
    """Decode the reply of decide.lua: for each hit its verdicts, or the error it met.

    Args:
        reply: The reply.
        hits: The hits of the call.
        where: Returns the name of the server, for errors.
    """
    text, *errors = reply if isinstance(reply, list) else [reply]
    numbers = map(int, text.split())
    verdicts = map(new_verdict, zip(numbers, numbers, numbers))  # noqa: B905 - one after another
    found = [
        [next(verdicts)] if len(charges) == 1 else list(islice(verdicts, len(charges)))
        for charges, *_ in hits
    ]
    if not errors:
        return found
    reasons = [ServerText(_text(error)) for error in errors]
    at = where()
    return [
        _with_errors(verdicts, hit, reasons, at) for verdicts, hit in zip(found, hits, strict=True)
    ]


def _with_errors(
    verdicts: list[Verdict], hit: Ask, reasons: Sequence[ServerText], where: str
) -> list[Verdict] | Exception:
    if verdicts[0].wait == _FAILED:
        return reasons[verdicts[0].remaining]
    return [
        Undecided.because(translated(reasons[verdict.remaining], where), charge.limit)
        if verdict.wait == _UNDECIDED
        else verdict
        for verdict, charge in zip(verdicts, hit.counts, strict=True)
    ]


@lru_cache(maxsize=1024)
def _spec(limit: Limit, cost: int, shadow: bool, mode: str, joined: bool) -> bytes:
    flags = ("&" if joined else "") + mode + ("~" if shadow else "")
    numbers = f"{limit.amount} {limit.period_ms} {limit.burst or 0} {cost}"
    return f"{_KINDS[limit.algorithm]}{flags} {numbers}".encode()


def _penalty_spec(limit: Limit, penalty: Penalty, mode: str, joined: bool) -> bytes:
    flags = ("&" if joined else "") + mode + ("@" if penalty.imposed else "")
    numbers = f"{limit.amount} {limit.period_ms} {penalty.ban_ms} {penalty.longest_ms}"
    return f"p{flags} {numbers}".encode()


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
