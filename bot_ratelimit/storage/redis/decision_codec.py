"""DecisionCodec: encodes hits for a Redis server, as a script or as transactions."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

from redis import exceptions

from bot_ratelimit.errors import StorageError
from bot_ratelimit.rules.limit import Algorithm
from bot_ratelimit.storage.base import Ask, Op
from bot_ratelimit.storage.redis import encoding, transaction
from bot_ratelimit.storage.redis.encoding import Command
from bot_ratelimit.storage.redis.faults import SCRIPTS_REFUSED, code_of, one_line, translated
from bot_ratelimit.storage.redis.request import AGAIN, Call, ParsedReplies, Redirect, Request

log = logging.getLogger("bot_ratelimit")

SCRIPT: Final = resources.files("bot_ratelimit.storage.redis").joinpath("decide.lua").read_bytes()
_SHA: Final = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()
_BY_HASH: Final = (b"EVALSHA", _SHA)
_BY_SOURCE: Final = (b"EVAL", SCRIPT)

# The script takes about 3 us for a single fixed window and up to 25 us for any other rule (measured
# with Redis 7 on a slow core).
_HEAVY: Final = 8
_LIGHT: Final = Algorithm.FIXED_WINDOW
_LIGHT_OPS: Final = (Op.HIT, Op.PEEK, Op.RESET)

TRY_SCRIPTS_AGAIN: Final = 60.0
"""Seconds after which a server that refused scripts is tried with a script again."""


class Commands(NamedTuple):
    """Commands of requests that are not decisions. The answer is the list of their replies."""

    commands: Sequence[Command]


Item: TypeAlias = "Ask | Commands"


class DecisionCodec:
    """Encodes hits as one call of the script, or as transactions if scripts are refused.

    Args:
        where: Where the server is now, for logs and errors.
        clock: Seconds from any starting point.
    """

    def __init__(
        self, where: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._where = where
        self._clock = clock
        self._script: tuple[bytes, bytes] = _BY_HASH
        self._refused_until: float | None = None

    @property
    def uses_script(self) -> bool:
        """Whether hits are sent as a script; otherwise they are sent as transactions."""
        return self._refused_until is None

    def weigh(self, item: Item) -> int:
        """See `Codec.weigh`."""
        if isinstance(item, Commands):
            return _HEAVY * len(item.commands)
        charges, once = item.counts, item.once
        lone = len(charges) == 1 and once is None
        if lone and charges[0].limit.algorithm is _LIGHT and item.op in _LIGHT_OPS:
            return 1
        return _HEAVY * (len(charges) + (once is not None))

    def calls(self, requests: Sequence[Request[Item]]) -> list[Call[Item]]:
        """Return one call for all hits, or one for each slot of a cluster; see `Codec.calls`."""
        calls: list[Call[Item]] = []
        hits: list[Request[Item]] = []
        for request in requests:
            if isinstance(request.item, Commands):
                calls.append(_with_asking(Call([request], request.item.commands, decides=False)))
            elif not self._tries_script():
                calls.append(_with_asking(Call([request], transaction.commands(request.item))))
            elif request.alone:
                calls.append(self._script_call([request]))
            else:
                hits.append(request)
        if len(hits) > 1 and hits[0].slot is not None:
            hits.sort(key=_SLOT)
            calls += (self._script_call(list(group)) for _, group in groupby(hits, _SLOT))
        elif hits:
            calls.append(self._script_call(hits))
        return calls

    def read(self, call: Call[Item], replies: list[Any]) -> ParsedReplies:
        """See `Codec.read`."""
        if len(replies) == len(call.requests) == 1 and type(replies[0]) is bytes:
            item = call.requests[0].item
            if type(item) is Ask and len(item.counts) == 1:  # the usual case on a Redis Cluster
                self._script, self._refused_until = _BY_HASH, None
                return ParsedReplies([[encoding.read_verdict(replies[0])]])
        if not call.requests:  # repairs: their replies do not matter
            return ParsedReplies(())
        if call.requests[0].asking:
            replies = replies[1:]
        item = call.requests[0].item
        if isinstance(item, Commands):
            return self._translated(call, [_redirect_in(replies) or replies])
        if call.commands and call.commands[-1][0] in (b"EVALSHA", b"EVAL"):
            return self._read_script_reply(call, replies[0])
        answers: list[Any] = [transaction.answer(item, replies)]
        return self._translated(call, answers, transaction.repairs(item, replies))

    def _tries_script(self) -> bool:
        return self._refused_until is None or self._clock() >= self._refused_until

    def _script_call(self, requests: Sequence[Request[Item]]) -> Call[Item]:
        arguments = encoding.script_arguments([request.item for request in requests])  # type: ignore[misc]  # hits only
        return _with_asking(Call(requests, [[*self._script, *arguments]]))

    def _read_script_reply(self, call: Call[Item], reply: Any) -> ParsedReplies:
        if not isinstance(reply, Exception):
            self._script, self._refused_until = _BY_HASH, None
            hits = [request.item for request in call.requests]
            answers = encoding.read_answers(reply, hits, self._where)  # type: ignore[arg-type]  # hits only
            return (
                ParsedReplies(answers)
                if isinstance(reply, bytes)
                else self._translated(call, answers)
            )
        again = [AGAIN] * len(call.requests)
        if isinstance(reply, exceptions.NoScriptError):  # a server that has restarted
            self._script = _BY_SOURCE
            return ParsedReplies(again)
        if len(call.requests) > 1 and _must_ask_one_by_one(reply):
            for request in call.requests:
                request.alone = True
            return ParsedReplies(again)
        if not SCRIPTS_REFUSED.search(str(reply)):
            return self._translated(call, [reply] * len(call.requests))
        if self._refused_until is None:
            log.warning(
                "Redis at %s refuses scripts (%s): using MULTI/EXEC, which can decide one fixed "
                "window and nothing else; allow EVALSHA and EVAL (ACL SETUSER <user> +@scripting)",
                self._where(),
                one_line(reply),
            )
        self._refused_until = self._clock() + TRY_SCRIPTS_AGAIN
        return ParsedReplies(again)

    def _translated(
        self, call: Call[Item], answers: Sequence[Any], repairs: Sequence[Command] = ()
    ) -> ParsedReplies:
        """Replace redirects and errors among the answers by this package's own types."""
        found = [
            (_redirect_in([each]) or translated(each, self._where()))
            if isinstance(each, Exception)
            else each
            for each in answers
        ]
        disconnect = next(
            (
                str(each)
                for each in found
                if isinstance(each, StorageError) and each.kind == "readonly"
            ),
            "",
        )
        return ParsedReplies(found, repairs, disconnect)


_SLOT: Final = attrgetter("slot")


def _with_asking(call: Call[Item]) -> Call[Item]:
    if call.requests[0].asking:
        call.commands = [(b"ASKING",), *call.commands]
        call.replies += 1
    return call


def _must_ask_one_by_one(reply: Exception) -> bool:
    """Whether keys must be asked for one by one.

    Either their slot is being moved: if one key is missing, the server would send all of them to
    the new node, where those not moved yet would start from zero. Or a plain client asks a node of
    a cluster and knows nothing of slots.
    """
    redirect = _redirect_in([reply])
    if redirect is not None:
        return redirect.asking
    return code_of(reply) in ("TRYAGAIN", "CROSSSLOT")


def _redirect_in(replies: Sequence[Any]) -> Redirect | None:
    """The redirect in the replies of a Redis Cluster, or None."""
    for reply in replies:
        if not isinstance(reply, exceptions.ResponseError):
            continue
        code, _, text = str(reply).partition(" ")
        if code in ("MOVED", "ASK"):
            asking = code == "ASK"
        elif isinstance(reply, exceptions.AskError):  # the cluster parser removes the code
            text, asking = str(reply), not isinstance(reply, exceptions.MovedError)
        else:
            continue
        host, _, port = text.rpartition(" ")[2].rpartition(":")
        return Redirect((host, int(port)), asking)
    return None
