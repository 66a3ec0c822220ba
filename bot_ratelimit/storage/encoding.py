"""How hits are put to decide.lua, and how its reply reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

from bot_ratelimit.algorithms import Undecided, Verdict, new_verdict
from bot_ratelimit.limit import Algorithm, Limit
from bot_ratelimit.penalty import Penalty
from bot_ratelimit.storage.base import ONCE_MS, Charge
from bot_ratelimit.storage.faults import ServerText, translated

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
"""A counter that reaches this is none of ours; below it a double is exact."""
_FAILED: Final = -1
_UNDECIDED: Final = -2


class Hit(NamedTuple):
    """One call of a storage: charges to decide together."""

    charges: Sequence[Charge]
    once: str | None = None
    peek: bool = False
    reset: bool = False
    """Look, then forget: the answer is what a peek would have said."""
    adjust: str = ""
    """`"+"` charges whatever is left, `"-"` gives back: the answer is what a hit of cost 1 is told
    afterwards."""
    age_us: int = 0
    """How long ago what is given back was charged."""


def wrong_type(key: str) -> ServerText:
    """The error for a key that holds something that is not ours, as the script words it."""
    return ServerText(f"WRONGTYPE '{key}' holds something else")


def encode_command(command: Command) -> bytes:
    """A command in RESP, the protocol of Redis."""
    parts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"*%d\r\n%b" % (len(command), b"".join(parts))


def encode_key(key: str) -> bytes:
    """A key as Redis knows it; half a character, as a custom id may hold, is kept."""
    return key.encode("utf-8", "surrogatepass")


def resets_key(key: str) -> str:
    """Where the resets of a count are numbered, while shared verdicts on it may still be about.

    `bot:ratelimit:once:{bot:ratelimit:42}`. On a cluster it lives in the slot of the count: by the
    hash tag of the prefix, or else by this one.
    """
    head, colon, _ = key.partition(":ratelimit:")
    return f"{head}{colon}once:{{{key}}}" if colon else f"once:{{{key}}}"


def script_arguments(hits: Sequence[Hit]) -> list[bytes]:
    """`numkeys key … arg …` for decide.lua: a key and its spec for each charge."""
    if len(hits) == 1 and len(hits[0].charges) == 1:
        charges, once, peek, reset, adjust, _ = hits[0]
        key, limit, cost, shadow, penalty = charges[0]
        if penalty is None and once is None and not reset and not adjust:  # as most on a cluster
            return [b"1", encode_key(key), _spec(limit, cost, shadow, "?" if peek else "", False)]
    keys: list[bytes] = []
    specs: list[bytes] = []
    for charges, once, peek, reset, adjust, age_us in hits:
        if once is not None:
            keys.append(encode_key(once))
            specs.append(_ONCE_SPEC)
        mode = "!" if reset else "?" if peek else adjust
        shared = reset or once is not None
        # How many more keys go with this one.
        joined = 2 * len(charges) if shared else len(charges)
        for key, limit, cost, shadow, penalty in charges:
            joined -= 1
            keys.append(encode_key(key))
            if age_us:
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
    """The verdict of decide.lua on one charge."""
    wait, remaining, reset = reply.split()
    return new_verdict((int(wait), int(remaining), int(reset)))


def read_answers(
    reply: bytes | str | list[bytes | str], hits: Sequence[Hit]
) -> Sequence[list[Verdict] | Exception]:
    """What decide.lua says to each hit: its verdicts, or the error it met."""
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
    return [_with_errors(verdicts, hit, reasons) for verdicts, hit in zip(found, hits, strict=True)]


def _with_errors(
    verdicts: list[Verdict], hit: Hit, reasons: Sequence[ServerText]
) -> list[Verdict] | Exception:
    if verdicts[0].wait == _FAILED:
        return reasons[verdicts[0].remaining]
    return [
        Undecided.because(translated(reasons[verdict.remaining]), charge.limit)
        if verdict.wait == _UNDECIDED
        else verdict
        for verdict, charge in zip(verdicts, hit.charges, strict=True)
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
