"""Strict: a Bot API over HTTP that counts requests where they arrive, each kind by itself."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

TOKEN = "42:TEST"
CROSSING = 0.5
"""Seconds after a 429 in which requests may arrive that were sent before the bot knew of it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that has arrived."""

    at: float
    method: str
    params: dict[str, str]
    refused: bool

    @property
    def chat(self) -> str:
        return self.params.get("chat_id", "")

    @property
    def text(self) -> str:
        return self.params.get("text", "")


@dataclass(slots=True)
class Budget:
    """A bucket (`rate` a second, `burst` at once), and windows (amount, seconds)."""

    rate: float = math.inf
    burst: int = 1
    windows: tuple[tuple[int, float], ...] = ()
    full_at: float = 0.0
    taken: deque[float] = field(default_factory=deque)
    refused_at: float = -math.inf
    blocked_until: float = 0.0

    def wait(self, now: float, cost: int) -> float:
        """Take `cost` permits, or return how long there are none."""
        waits = [0.0, self.full_at - now - max(0, self.burst - cost) / self.rate]
        for amount, seconds in self.windows:
            recent = [at for at in self.taken if at > now - seconds]
            if (over := len(recent) + cost - amount) > 0:
                waits.append(recent[min(over, len(recent)) - 1] + seconds - now)
        if (wait := max(waits)) <= 0:
            self.full_at = max(self.full_at, now) + cost / self.rate
            self.taken.extend([now] * cost)
        return max(0.0, wait)


class Strict:
    """Telegram with exact limits: a chat 1/s with a burst of 5, a group 20 a minute, drafts 20 in
    5 s and 40 in 30 s, chat actions and each method of a chat 1/s with a burst of 4.

    Args:
        script: For each method, what its next requests get: None for the limits, or the
            `parameters` of a 429.
    """

    def __init__(self, script: dict[str, list[dict[str, Any] | None]] | None = None) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.impatient = 0
        """How many requests came although the wait of a 429 was not over."""
        self._script = defaultdict(list, script or {})
        self._ids = itertools.count(1)
        self._budgets: dict[tuple[str, str], Budget] = {}
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/bot{token}/{method}", self._respond)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1_000)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    def accepted(self, method: str, chat: object = None) -> list[Seen]:
        """What was taken of this method, in order."""
        return [
            each
            for each in self.seen
            if each.method == method
            and not each.refused
            and chat in (None, each.chat, int_of(each))
        ]

    def refusals(self, method: str = "") -> int:
        """How many 429s there were."""
        return sum(each.refused and method in ("", each.method) for each in self.seen)

    async def _respond(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        form = await request.post()
        params = {k: v for k, v in form.items() if isinstance(v, str)}
        method = request.match_info["method"]
        parameters = self._check(method, params, now)
        self.seen.append(Seen(now, method, params, parameters is not None))
        if parameters is not None:
            body = {"ok": False, "error_code": 429, "description": "Too Many Requests: retry later"}
            return web.json_response(body | {"parameters": parameters}, status=429)
        return web.json_response({"ok": True, "result": self._result(method, params)})

    def _check(self, method: str, params: dict[str, str], now: float) -> dict[str, Any] | None:
        if (script := self._script[method]) and (said := script.pop(0)) is not None:
            return said
        chat = params.get("chat_id", "")
        cost = len(json.loads(params.get("media") or params.get("message_ids") or "[0]"))
        for budget in self._budgets_of(method, chat):
            if now < budget.blocked_until:
                self.impatient += now > budget.refused_at + CROSSING
                return {"retry_after": math.ceil(budget.blocked_until - now)}
            if (wait := budget.wait(now, cost)) > 0:
                seconds = math.ceil(wait)
                budget.refused_at, budget.blocked_until = now, now + wait
                return {"retry_after": seconds}
        return None

    def _budgets_of(self, method: str, chat: str) -> list[Budget]:
        group = Budget(windows=((20, 60.0),))
        if method in ("sendMessageDraft", "sendRichMessageDraft"):
            wanted = {"draft": Budget(windows=((20, 5.0), (40, 30.0)))}
        elif method == "sendChatAction":
            wanted = {"action": Budget(1.0, 5)}
        elif method.startswith(("send", "edit", "copy", "forward")):
            wanted = {"message": Budget(1.0, 5)} | ({"group": group} if chat[:1] == "-" else {})
        elif method in ("pinChatMessage", "createForumTopic"):
            wanted = {"group": group} if chat[:1] == "-" else {}
        elif method.startswith(("get", "answer")):
            wanted = {}
        else:
            wanted = {method: Budget(1.0, 4)}
        return [self._budgets.setdefault((kind, chat), each) for kind, each in wanted.items()]

    def _result(self, method: str, params: dict[str, str]) -> Any:
        if method == "createForumTopic":
            return {"message_thread_id": next(self._ids), "name": "x", "icon_color": 1}
        if not method.startswith(("send", "edit", "copy", "forward")) or "Draft" in method:
            return True
        if method == "sendChatAction" or "Ephemeral" in method:
            return True
        chat = params.get("chat_id", "0")
        number = int(chat)
        kind = {"type": "private"} if number > 0 else {"type": "supergroup", "title": "x"}
        message = {
            "message_id": int(params.get("message_id") or next(self._ids)),
            "date": int(time.time()),
            "chat": {"id": number, **kind},
            "text": params.get("text", ""),
        }
        return [message] if method == "sendMediaGroup" else message


def int_of(seen: Seen) -> object:
    """The chat of a request as a number, if it is one."""
    return int(seen.chat) if seen.chat.lstrip("-").isdigit() else seen.chat
