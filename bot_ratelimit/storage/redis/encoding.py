"""Encodes what a storage is asked as arguments of the script, and decodes its reply."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from bot_ratelimit.algorithms.verdict import Verdict, new_verdict
from bot_ratelimit.rules.limit import Algorithm, Limit
from bot_ratelimit.storage.base import ONCE_MS, Ask, Count, Op
from bot_ratelimit.storage.redis.faults import ServerText

Command = Sequence[bytes]

_KINDS: Final = {
    Algorithm.FIXED_WINDOW: "f",
    Algorithm.SLIDING_WINDOW: "s",
    Algorithm.TOKEN_BUCKET: "b",
}
_MODES: Final = {Op.HIT: "", Op.PEEK: "?", Op.CHARGE: "+", Op.REFUND: "-", Op.RESET: "!"}
_ONCE: Final = f"${len(str(ONCE_MS)) + 3}\r\no& {ONCE_MS}\r\n"
_FAILED: Final = -1
_HIT: Final = Op.HIT


def encode_command(command: Command) -> bytes:
    """Encode a command in RESP, the protocol of Redis."""
    parts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"*%d\r\n%b" % (len(command), b"".join(parts))


def encode_key(key: str) -> bytes:
    """Encode a key; half a surrogate pair, which a custom id may contain, is kept."""
    return key.encode("utf-8", "surrogatepass")


def script_command(command: tuple[str, str], asks: Iterable[Ask], *, own: bool = False) -> bytes:
    """Encode a call of the script: `command numkeys key … arg …`, a key and an argument a count.

    As one text, which is encoded once: half of the work for a hit would be that for its parts. With
    `own` each ask has a call of its own.
    """
    parts: list[str] = []
    keys: list[str] = []
    arguments: list[str] = []
    same, argument = None, ""  # the limit of the hit before, and its argument
    for counts, op, once in asks:
        if own and keys:
            parts += (_head(command, len(keys)), *keys, *arguments)
            keys, arguments = [], []
        if op is _HIT and once is None and len(counts) == 1:  # the usual case
            key, limit, cost, shadow, penalty = counts[0]
            if penalty is None and not limit.zone:
                keys.append(f"${len(key)}\r\n{key}\r\n" if key.isascii() else _part(key))
                if limit is not same or cost != 1 or shadow:
                    argument = _argument(limit, cost, "~" if shadow else "")
                    same = limit if cost == 1 and not shadow else None
                arguments.append(argument)
                continue
        if once is not None:
            keys.append(_part(once))
            arguments.append(_ONCE)
        last = len(counts) - 1
        for i, count in enumerate(counts):
            keys.append(_part(count.key))
            arguments.append(_argument_of(count, _MODES[op] + ("&" if i < last else "")))
    return encode_key("".join((*parts, _head(command, len(keys)), *keys, *arguments)))


@lru_cache(maxsize=512)
def _head(command: tuple[str, str], keys: int) -> str:
    size = len(command) + 1 + 2 * keys
    return f"*{size}\r\n" + "".join(map(_part, (*command, str(keys))))


def _part(text: str) -> str:
    """A part of a command in RESP."""
    size = len(text) if text.isascii() else len(encode_key(text))
    return f"${size}\r\n{text}\r\n"


def read_answers(
    reply: list[Any], size: int, asks: Iterable[Ask]
) -> Sequence[list[Verdict] | ServerText]:
    """Decode the reply of the script: for each ask its verdicts, or the error it met.

    It has three numbers for each count; or it is a list of these numbers and of errors.
    """
    if size == 1 and len(reply) == 3 and type(reply[0]) is int:  # nearly always, or the next
        return [[new_verdict(reply)]]
    numbers, *errors = reply if type(reply[0]) is list else (reply,)
    each = iter(numbers)
    verdicts = map(new_verdict, zip(each, each, each))  # noqa: B905 - one after another
    if not errors and len(numbers) == 3 * size:  # nearly always
        return [[verdict] for verdict in verdicts]
    found = [list(islice(verdicts, len(counts))) for counts, _, _ in asks]
    return [
        ServerText(_text(errors[each[0].remaining])) if each[0].wait == _FAILED else each
        for each in found
    ]


def _argument_of(count: Count, flags: str) -> str:
    _, limit, cost, shadow, penalty = count
    if penalty is not None:
        flags += "@" if penalty.imposed else ""
        numbers = f"{limit.amount} {limit.period_ms} 0 {penalty.ban_ms} {penalty.longest_ms}"
        return _part(f"p{flags} {numbers}")
    flags += "~" if shadow else ""
    if not limit.zone:
        return _argument(limit, cost, flags)
    ends = " ".join(map(str, limit.window_ends(time.time())))
    return _part(f"c{flags} {limit.amount} {limit.period_ms} {cost} {ends}")


@lru_cache(maxsize=1024)
def _argument(limit: Limit, cost: int, flags: str) -> str:
    burst = "" if limit.burst is None else f" {limit.burst}"
    kind = _KINDS[limit.algorithm]
    return _part(f"{kind}{flags} {limit.amount} {limit.period_ms} {cost}{burst}")


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
