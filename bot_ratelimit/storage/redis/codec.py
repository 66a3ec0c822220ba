"""DecisionCodec: encodes hits for a Redis server, as a script or as transactions."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from time import monotonic
from typing import Any, Final, TypeAlias

from redis import exceptions

from bot_ratelimit.algorithms.script import SCRIPT, SHA
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.storage.redis import encoding, transaction
from bot_ratelimit.storage.redis.encoding import Command, encode_command
from bot_ratelimit.storage.redis.faults import (
    ALLOW_SCRIPTS,
    SCRIPTS_REFUSED,
    code_of,
    one_line,
    translated,
)
from bot_ratelimit.storage.redis.request import AGAIN, Call, Redirect, Request

log = logging.getLogger("bot_ratelimit")

_BY_HASH: Final = ("EVALSHA", SHA)
_BY_SOURCE: Final = ("EVAL", SCRIPT)
_ASKING: Final = encode_command([b"ASKING"])

TRY_SCRIPTS_AGAIN: Final = 60.0
"""Seconds after which a server that refused scripts is tried with a script again."""


ALONE: Final = 1.0
"""Seconds in which each hit has a call of its own after some could not share one."""


Item: TypeAlias = "Ask | Command"
"""A decision, or any other command: the answer is its reply."""


class DecisionCodec:
    """Encodes hits as one command of the script, or as transactions if scripts are refused.

    On a cluster, where `slot_of` is given, only keys of one slot share a command.
    """

    def __init__(
        self,
        where: Callable[[], str],
        allow_scripts: str = ALLOW_SCRIPTS,
        *,
        slot_of: Callable[[str], int] | None = None,
    ) -> None:
        self._where = where
        self._allow_scripts = allow_scripts
        self._slot_of = slot_of
        self._script = _BY_HASH
        self._refused_until: float | None = None
        self._alone_until = -math.inf

    @property
    def uses_script(self) -> bool:
        """Whether hits are sent as a script; otherwise they are sent as transactions."""
        return self._refused_until is None

    def calls(self, requests: Sequence[Request]) -> list[Call]:
        """Encode requests: all hits in one command, or in one for each slot of a cluster.

        A request that cannot be sent is answered here.
        """
        calls: list[Call] = []
        hits: list[Request] = []
        uses_script = self._refused_until is None or monotonic() >= self._refused_until
        for request in requests:
            item = request.item
            if type(item) is not Ask:
                calls.append(_commands([request], [item], decides=False))
            elif not uses_script:
                if (fault := transaction.needs_script(item, self._allow_scripts)) is not None:
                    request.answer(fault)
                else:
                    calls.append(_commands([request], transaction.commands(item)))
            else:
                hits.append(request)
        if hits:
            calls += self._script_calls(hits)
        return calls

    def _script_calls(self, hits: list[Request]) -> list[Call]:
        """Encode hits: those that share a command, and all others as commands of one call."""
        slot_of, are_alone = self._slot_of, monotonic() < self._alone_until
        if len(hits) == 1 or (slot_of is None and not are_alone):
            return [self._script_call(hits)]
        shared: dict[object, list[Request]] = defaultdict(list)
        for hit in hits:
            if are_alone or hit.asking or slot_of is None:
                shared[hit].append(hit)
            else:
                shared[slot_of(hit.item.counts[0].key)].append(hit)
        groups = shared.values()
        calls = [self._script_call(each) for each in groups if len(each) > 1 or each[0].asking]
        if single := [each[0] for each in groups if len(each) == 1 and not each[0].asking]:
            data = encoding.script_command(self._script, map(_ITEM, single), own=True)
            calls.append(Call(single, data, len(single)))
        return calls

    def read(self, call: Call, replies: list[Any]) -> Sequence[Any]:
        """Read the replies to a call.

        Returns:
            The answer to each request: a list, an exception to raise, a `Redirect`, or `AGAIN`.
        """
        requests, reply = call.requests, replies[-1]
        if call.decides and type(reply) is list and type(reply[0]) is int and len(replies) == 1:
            self._script, self._refused_until = _BY_HASH, None  # the script's, nearly always
            return encoding.read_answers(reply, len(requests), map(_ITEM, requests))
        if 1 < len(requests) == len(replies):
            return [self._read_own(*each) for each in zip(requests, replies, strict=True)]
        if not requests:  # a repair: its reply does not matter
            return ()
        if requests[0].asking:
            replies = replies[1:]
        if not call.decides:
            return self._translated(replies)
        if len(replies) == 1:
            return self._read_script_reply(requests, reply)
        answer, call.repair = transaction.read(requests[0].item, replies)
        return self._translated([answer])

    def _script_call(self, requests: Sequence[Request]) -> Call:
        data = encoding.script_command(self._script, map(_ITEM, requests))
        return Call(requests, _ASKING + data, 2) if requests[0].asking else Call(requests, data)

    def _read_own(self, request: Request, reply: Any) -> Any:
        """Read the reply to the only hit of a command."""
        if type(reply) is list and type(reply[0]) is int:  # nearly always
            self._script, self._refused_until = _BY_HASH, None
            return encoding.read_answers(reply, 1, (request.item,))[0]
        return self._read_script_reply([request], reply)[0]

    def _read_script_reply(self, requests: Sequence[Request], reply: Any) -> Sequence[Any]:
        if not isinstance(reply, Exception):
            self._script, self._refused_until = _BY_HASH, None
            answers = encoding.read_answers(reply, len(requests), map(_ITEM, requests))
            return self._translated(answers)
        again = [AGAIN] * len(requests)
        if code_of(reply) == "NOSCRIPT":  # a server that has restarted
            self._script = _BY_SOURCE
            return again
        if len(requests) > 1 and _cannot_share(reply):
            self._alone_until = monotonic() + ALONE
            return again
        if not SCRIPTS_REFUSED.search(str(reply)):
            return self._translated([reply] * len(requests))
        if self._refused_until is None:
            log.warning(
                "Redis at %s refuses scripts (%s): using MULTI/EXEC, which can decide one fixed "
                "window and nothing else; %s",
                self._where(),
                one_line(reply),
                self._allow_scripts,
            )
        self._refused_until = monotonic() + TRY_SCRIPTS_AGAIN
        return again

    def _translated(self, answers: Iterable[Any]) -> list[Any]:
        """Replace redirects and errors among the answers by this package's own types."""
        where = self._where()
        return [
            (_redirect_in(each) or translated(each, where)) if isinstance(each, Exception) else each
            for each in answers
        ]


_ITEM: Final = attrgetter("item")


def _commands(
    requests: Sequence[Request], commands: Sequence[Command], *, decides: bool = True
) -> Call:
    parts = [*([_ASKING] if requests[0].asking else []), *map(encode_command, commands)]
    return Call(requests, b"".join(parts), len(parts), decides=decides)


def _cannot_share(reply: Exception) -> bool:
    """Whether keys must be asked for one by one.

    Either their slot is being moved: if one key is missing, the server would send all of them to
    the new node, where those not moved yet would start from zero. Or a plain client asks a node of
    a cluster and knows nothing of slots.
    """
    redirect = _redirect_in(reply)
    if redirect is not None:
        return redirect.asking
    return code_of(reply) in ("TRYAGAIN", "CROSSSLOT")


def _redirect_in(reply: Exception) -> Redirect | None:
    """The redirect in an error of a Redis Cluster, or None."""
    code, *rest = str(reply).split(" ")
    if code not in ("MOVED", "ASK") or not isinstance(reply, exceptions.ResponseError):
        return None
    slot, address = rest
    host, _, port = address.rpartition(":")
    return Redirect(int(slot), (host, int(port)), code == "ASK")
