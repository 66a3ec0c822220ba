"""How hits are put to decide.lua, and how its reply reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

from bot_ratelimit.algorithms import Verdict, new_verdict
from bot_ratelimit.limit import Algorithm, Limit
from bot_ratelimit.penalty import Penalty
from bot_ratelimit.storage.base import ONCE_MS, Charge

Command = Sequence[bytes]

_KINDS: Final = {
    Algorithm.FIXED_WINDOW: "f",
    Algorithm.SLIDING_WINDOW: "s",
    Algorithm.TOKEN_BUCKET: "b",
}
_ONCE_SPEC: Final = f"o& {ONCE_MS}".encode()


class Hit(NamedTuple):
    """One call of a storage: charges to decide together."""

    charges: Sequence[Charge]
    once: str | None = None
    look: bool = False


class ServerText(Exception):  # noqa: N818 - not raised: it carries an error's text to its translator
    """An error that the script met in one hit, as the server words it."""


def encode(command: Command) -> bytes:
    """A command in RESP, the protocol of Redis."""
    parts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"*%d\r\n%b" % (len(command), b"".join(parts))


def name(key: str) -> bytes:
    """A key as Redis knows it; half a character, as an id of somebody's own may hold, is kept."""
    return key.encode("utf-8", "surrogatepass")


def script_arguments(hits: Sequence[Hit]) -> list[bytes]:
    """`numkeys key … arg …` for decide.lua: a key and its spec for each charge."""
    if len(hits) == 1 and len(hits[0].charges) == 1 and hits[0].once is None:
        key, limit, cost, shadow, penalty = hits[0].charges[0]
        if penalty is None:  # as most are on a Redis Cluster
            return [b"1", name(key), _spec(limit, cost, shadow, hits[0].look, False)]
    keys: list[bytes] = []
    specs: list[bytes] = []
    for charges, once, look in hits:
        if once is not None:
            keys.append(name(once))
            specs.append(_ONCE_SPEC)
        joined = len(charges)  # with how many more of them this one is decided
        for key, limit, cost, shadow, penalty in charges:
            joined -= 1
            keys.append(name(key))
            if penalty is None:
                specs.append(_spec(limit, cost, shadow, look, joined > 0))
            else:
                specs.append(_penalty_spec(limit, penalty, look, joined > 0))
    return [b"%d" % len(keys), *keys, *specs]


def only_verdict(reply: bytes) -> Verdict:
    """The verdict of decide.lua on one charge."""
    wait, remaining, reset = reply.split()
    return new_verdict((int(wait), int(remaining), int(reset)))


def script_answers(
    reply: bytes | str | list[bytes | str], hits: Sequence[Hit]
) -> Sequence[list[Verdict] | Exception]:
    """What decide.lua says to each hit: its verdicts, or the error it met."""
    text, *errors = reply if isinstance(reply, list) else [reply]
    numbers = map(int, text.split())
    verdicts = map(new_verdict, zip(numbers, numbers, numbers))  # noqa: B905 - one after another
    found = [
        [next(verdicts)] if len(charges) == 1 else list(islice(verdicts, len(charges)))
        for charges, _, _ in hits
    ]
    if not errors:
        return found
    return [
        ServerText(_text(errors[first.remaining])) if first.wait < 0 else [first, *others]
        for first, *others in found
    ]


@lru_cache(maxsize=1024)
def _spec(limit: Limit, cost: int, shadow: bool, look: bool, joined: bool) -> bytes:
    flags = ("&" if joined else "") + ("?" if look else "") + ("~" if shadow else "")
    numbers = f"{limit.amount} {limit.period_ms} {limit.burst or 0} {cost}"
    return f"{_KINDS[limit.algorithm]}{flags} {numbers}".encode()


def _penalty_spec(limit: Limit, penalty: Penalty, look: bool, joined: bool) -> bytes:
    flags = ("&" if joined else "") + ("?" if look else "")
    numbers = f"{limit.amount} {limit.period_ms} {penalty.ban_ms} {penalty.longest_ms}"
    return f"p{flags} {numbers}".encode()


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
