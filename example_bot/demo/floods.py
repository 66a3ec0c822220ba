"""FloodControl: a model of Telegram's limits on what a bot may send, with its 429s."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from example_bot.demo.methods import ApiError

COUNTED = ("send", "edit", "forward", "copy", "stop")
"""The prefixes of the methods that count; answers to queries have no limit."""
GROWTH, LONGEST = 2, 300
CROSSING = 0.5
"""Seconds after a refusal in which requests may arrive that the bot sent before it knew."""


@dataclass(slots=True)
class _Chat:
    full_at: float = 0.0
    """When its bucket would be full again."""
    sent: deque[float] = field(default_factory=deque)
    """When the messages of the last minute arrived, in a group."""
    refused_at: float = -math.inf
    blocked_until: float = 0.0
    strikes: int = 0


class FloodControl:
    """Refuses requests of a bot that sends too fast, for longer each time it does not wait.

    These are the numbers of Telegram's FAQ, taken literally: about one message a second in a chat
    with short bursts, 20 a minute in a group, `bulk` a second to users who have not written within
    the last minute. Replies have no common limit.
    """

    def __init__(
        self,
        *,
        burst: int = 5,
        bulk: int = 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refused = 0
        """How many requests were answered with 429."""
        self.impatient = 0
        """How many of them came before the announced wait was over."""
        self._burst = burst
        self._bulk = bulk
        self._clock = clock
        self._chats: dict[str, _Chat] = {}
        self._bot = _Chat()
        self._wrote: dict[str, float] = {}

    def wrote(self, chat: int | str) -> None:
        """Note that a user wrote: messages to this chat in the next minute are replies."""
        self._wrote[str(chat)] = self._clock()

    def check(self, method: str, params: Mapping[str, str]) -> None:
        """Count a request; ApiError 429, with the seconds to wait, if it is refused."""
        name = params.get("chat_id") or params.get("inline_message_id")
        if name is None or not method.lower().startswith(COUNTED) or _is_decoration(method):
            return
        now, cost = self._clock(), _items(params)
        chat = self._chats.setdefault(name, _Chat())
        bulk = now - self._wrote.get(name, -math.inf) > 60
        for state in (self._bot, chat):
            if now < state.blocked_until:
                if now < state.refused_at + CROSSING:
                    self.refused += 1
                    raise _too_many(state.blocked_until - now)
                self.impatient += 1
                raise self._refusal(state, now, state.blocked_until - now)
        if (wait := self._wait(chat, name, now, cost)) > 0:
            raise self._refusal(chat, now, wait)
        if bulk and (wait := _window(self._bot.sent, now, 1.0, self._bulk, cost)) > 0:
            raise self._refusal(self._bot, now, wait)
        chat.full_at = max(chat.full_at, now) + cost
        for state, counts in ((chat, name.startswith(("-", "@"))), (self._bot, bulk)):
            state.strikes = 0
            if counts:
                state.sent.extend([now] * cost)

    def _wait(self, chat: _Chat, name: str, now: float, cost: int) -> float:
        # An album that is larger than a burst passes if nothing else was sent for a while.
        room = max(0, self._burst - cost)
        wait = chat.full_at - now - room
        if name.startswith(("-", "@")):
            wait = max(wait, _window(chat.sent, now, 60.0, 20, cost))
        return wait

    def _refusal(self, state: _Chat, now: float, wait: float) -> ApiError:
        self.refused += 1
        seconds = min(math.ceil(wait) * GROWTH**state.strikes, LONGEST)
        state.strikes += 1
        state.refused_at, state.blocked_until = now, now + seconds
        return _too_many(seconds)


def _is_decoration(method: str) -> bool:
    """Whether this shows something for a moment: such requests do not count as messages."""
    return method.lower() == "sendchataction" or method.lower().endswith("draft")


def _too_many(wait: float) -> ApiError:
    seconds = math.ceil(wait)
    text = f"Too Many Requests: retry after {seconds}"
    return ApiError(429, text, retry_after=seconds)


def _window(sent: deque[float], now: float, period: float, amount: int, cost: int) -> float:
    """Seconds until `cost` more fit into every window of this length."""
    while sent and sent[0] <= now - period:
        sent.popleft()
    excess = len(sent) + min(cost, amount) - amount
    return sent[excess - 1] + period - now if excess > 0 else 0.0


def _items(params: Mapping[str, str]) -> int:
    """How many messages a request counts as."""
    for name in ("media", "message_ids"):
        if params.get(name, "").startswith("["):
            return max(1, len(json.loads(params[name])))
    return 1
