"""Sending: what the bot sends, as its instances report it, and how that is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.words import Marked, Words, code, joined, moment
from bot_ratelimit.limiter.observer import FloodScope

_BLOCKED: Final = {
    "chat": "messages to chat {what}",
    "bot": "all messages",
    "draft": "drafts in chat {what}",
    "action": "actions in chat {what}",
    "method": "{what}",
}
_BLOCKS: Final = 10


@dataclass(frozen=True, slots=True)
class MethodUse:
    """What became of the requests of one method."""

    method: str
    sent: int
    failed: int
    flooded: int
    """Answered with 429 for the last time."""
    unsent: int


@dataclass(frozen=True, slots=True)
class Block:
    """What Telegram does not take now, after a 429."""

    bot: int
    scope: FloodScope
    what: str
    """The chat, or the method; empty for all messages of the bot."""
    until: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class BroadcastView:
    """How far a broadcast is."""

    done: int
    total: int | None
    """None if it is unknown."""
    skipped: int
    """Chats that an earlier run had done already."""
    counts: Mapping[str, int]
    """By outcome, see `Status`."""
    per_second: float


@dataclass(frozen=True, slots=True)
class SendingView:
    """What the bot sends, on all instances."""

    requests: tuple[MethodUse, ...]
    floods: int
    """Answers 429, also to requests that were sent again."""
    waiting: int
    """Requests that wait now."""
    blocks: tuple[Block, ...]
    broadcasts: tuple[BroadcastView, ...]


def sending_of(
    totals: Mapping[str, Mapping[str, int]], floods: int, reports: Mapping[str, bytes]
) -> SendingView:
    """What the instances report, and the requests by method and outcome."""
    waiting = 0
    blocks: list[Block] = []
    broadcasts: list[BroadcastView] = []
    for raw in reports.values():
        try:
            report = json.loads(raw)
            waiting += report["waiting"]
            blocks += [Block(*each) for each in report["blocks"]]
            broadcasts += [BroadcastView(**each) for each in report["broadcasts"]]
        except (ValueError, LookupError, TypeError):  # of another version of this package
            continue
    requests = [
        MethodUse(method, *(found[name] for name in ("sent", "failed", "flooded", "unsent")))
        for method, found in sorted(totals.items(), key=lambda each: -sum(each[1].values()))
    ]
    blocks.sort(key=lambda each: each.until, reverse=True)
    return SendingView(tuple(requests), floods, waiting, tuple(blocks), tuple(broadcasts))


def sheet(words: Words, found: SendingView) -> Sheet:
    """What the bot sends: what waits, broadcasts, blocks; and the requests by method."""
    lines = [words("Waiting to be sent: {count}. Answers 429: {floods}.", count=found.waiting,
                   floods=found.floods)]  # fmt: skip
    lines += [_broadcast(words, each) for each in found.broadcasts]
    for each in found.blocks[:_BLOCKS]:
        what = words(_BLOCKED.get(each.scope, "{what}"), what=code(each.what, 100))
        text = "Blocked by Telegram until {at}: {what}"
        lines.append(words(text, at=moment(each.until), what=what))
    if len(found.blocks) > _BLOCKS:
        lines.append(words("Further blocks: {count}", count=len(found.blocks) - _BLOCKS))
    rows = [(each.method, each.sent, each.failed, each.flooded, each.unsent)
            for each in found.requests]  # fmt: skip
    head = [words(name) for name in ("METHOD", "SENT", "FAILED", "429", "NOT SENT")]
    text = "No requests were counted. That needs OutgoingLimits(..., statistics=True) in the bot."
    foot = [] if rows else [words(text)]
    return Sheet(lines, head if rows else (), rows, foot, words("What the bot sends"))


def _broadcast(words: Words, each: BroadcastView) -> Marked:
    """`Broadcast: 12345 of 100000 (12 %), 25.0/s, 58 min left`, and the outcomes."""
    parts = [words("{done} chats", done=each.done)]
    if each.total:
        share = 100 * each.done // each.total
        parts = [words("{done} of {total} chats ({share} %)", done=each.done, total=each.total,
                       share=share)]  # fmt: skip
    if each.per_second:
        parts.append(words("{rate} a second", rate=each.per_second))
        if each.total:
            left = max(0, each.total - each.done) / each.per_second
            parts.append(words("{time} left", time=words.duration(round(left))))
    parts += [
        joined([words(f"chats {name}").removeprefix("chats "), count], " ")
        for name, count in each.counts.items()
    ]
    return words("Broadcast: {progress}", progress=joined(parts))
