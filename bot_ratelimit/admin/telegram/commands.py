"""Commands: which operation each of them is, and how its arguments are read."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aiogram.types import Message

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import checked
from bot_ratelimit.admin.operations import OPERATIONS, Operation
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.telegram.messages import (
    Answer,
    ButtonPress,
    Buttons,
    asked,
    ids_of,
    page_of,
    rows,
)
from bot_ratelimit.admin.telegram.targets import UnclearError, target_of
from bot_ratelimit.admin.words import Words, code
from bot_ratelimit.config.live import live_key
from bot_ratelimit.incoming.middleware import RateLimitMiddleware
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.rule import Subject


@dataclass(frozen=True, slots=True)
class Command:
    """An operation as a command; its words are fields, after the target, if it has one."""

    operation: str
    example: str = ""
    hint: str = "For example {example}"
    takes: Sequence[str] = ()
    """The fields that the words are; the last field takes all further words."""
    switches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The last word may be one of these, and stands for fields."""

    def fields(self, arguments: str) -> dict[str, Any]:
        """The fields that these words are."""
        words = arguments.split()
        found = dict(self.switches.get(words[-1].lower(), {})) if words else {}
        if found:
            words.pop()
        *names, last = self.takes or ("",)
        found |= zip(names, words, strict=False)
        if further := words[len(names) :]:
            found[last or further[0]] = further if last == "rules" else " ".join(further)
        return found


_HOW_LONG: Final = "For how long? For example {example}, or `forever` instead of a period."
_SET: Final = (
    "For example {example}; instead of a limit also `off`, `on`, `shadow`, `enforce` or `default`."
)
_SWITCHES: Final = {
    "off": {"off": True},
    "on": {"off": False},
    "shadow": {"shadow": True},
    "enforce": {"shadow": False},
    "default": {"default": True},
}
_PENALTY: Final = (
    "For example {example}: a ban of 15 minutes after 10 refused messages in a minute. With "
    "`grows` at the end, 10 more refused messages during the ban double it. `default` undoes the "
    "change."
)
_EXEMPT: Final = "For example {example}, or with `off` at the end to limit them again."
_PAUSE: Final = "For how long? For example {example}, at most a day."
_ROLLBACK: Final = (
    "To which version? Give a number, for example {example}; 0 drops all changes, and without a "
    "number it is the previous version."
)

COMMANDS: Final[Mapping[str, Command]] = {
    "limits": Command("limits"),
    "who": Command("show", "42"),
    "try": Command("try", "42", takes=["rule"]),
    "forgive": Command("forgive", "42", takes=["rules"]),
    "ban": Command("ban", "42 1h spam", _HOW_LONG, ["how_long", "reason"]),
    "unban": Command("unban", "42"),
    "bans": Command("bans"),
    "top": Command("top"),
    "stats": Command("by_hour"),
    "sending": Command("sending"),
    "setlimit": Command("set", "NAME 2/minute", _SET, ["name", "limit"], _SWITCHES),
    "penalty": Command(
        "penalty", "10/minute 15m", _PENALTY, ["after", "ban"], {"grows": {"grows": True}}
    ),
    "exempt": Command("exempt", "42", _EXEMPT, switches={"off": {"exempt": False}}),
    "history": Command("history"),
    "rollback": Command("rollback", "3", _ROLLBACK, ["version"]),
    "pause": Command("pause", "1h", _PAUSE, ["how_long"]),
    "resume": Command("resume"),
    "audit": Command("audit"),
    "health": Command("health"),
}

_PRESSES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "who": ("show", {}),
    "free": ("forgive", {}),
    "hour": ("ban", {"how_long": "1h"}),
    "day": ("ban", {"how_long": "1d"}),
    "lift": ("unban", {}),
}
"""Buttons about a user or chat; every other button has the name of its operation."""

_OPTION: Final = re.compile(r"(?:--|—)[a-z].*")  # some clients make a dash of two hyphens
_NO_OPTIONS: Final = (
    "{option}: options exist only in a shell. To name a chat, reply to a message there, or use a "
    "button of {bans}."
)

_ALL: Final = {"bans": {"limit": 1_000}}
"""Lists that come in pages of messages."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who gives commands, and what is needed to answer them."""

    id: int
    words: Words
    """In their language."""
    control: Control
    """Acts in their name."""
    middleware: RateLimitMiddleware
    bot: int
    """The id of the bot that they write to."""
    prefix: str
    """What the names of commands begin with."""
    confirmations: Confirmations

    @property
    def buttons(self) -> Buttons:
        """Makes buttons in their language."""
        return Buttons(self.words, self.prefix)

    async def answer(self, name: str, arguments: str, message: Message) -> Answer:
        """What a command shows, or asks before it changes something."""
        for word in arguments.split():
            if _OPTION.fullmatch(word):
                raise UnclearError(_NO_OPTIONS, option=code(word), bans=f"/{self.prefix}bans")
        command = COMMANDS[name]
        operation, found = OPERATIONS[command.operation], dict[str, Any]()
        if "id" in operation.fields.model_fields:
            subject, arguments = target_of(message, arguments, self.bot)
            found = await self._target(operation, subject)
        return await self._answer(operation, found | command.fields(arguments))

    async def pressed(self, press: ButtonPress) -> Answer:
        """The answer to a button other than yes and no."""
        name, more = _PRESSES.get(press.what, (press.what, {}))
        operation, found = OPERATIONS[name], dict(more)
        if "id" in operation.fields.model_fields:
            topic = int(press.extra) if press.extra.isdecimal() else None
            subject = Subject(press.first or None, press.second or None, topic)
            found |= await self._target(operation, subject)
        elif name == "rollback":
            found["version"] = press.first
        return await self._answer(operation, found, press.page)

    async def _target(self, operation: Operation, subject: Subject) -> dict[str, Any]:
        """The fields that say who is meant."""
        if self.middleware.per_bot:
            subject = subject._replace(bot=self.bot)
        if operation.name == "ban" and subject.user is not None:
            subject = subject._replace(chat=None)  # in a group: everywhere
        if operation.name == "unban":
            bans = await self.control.limiter.bans_of(subject)
            subject = bans[0].subject if bans else subject
        id_ = subject.chat if subject.user is None else subject.user
        chat = None if subject.user is None else subject.chat
        as_user = subject.user is not None and subject.user < 0  # a channel that writes in groups
        found = {
            "id": id_,
            "chat": chat,
            "topic": subject.topic,
            "bot": subject.bot,
            "as_user": as_user,
        }
        return {name: found[name] for name in operation.fields.model_fields if name in found}

    async def _answer(
        self, operation: Operation, fields: Mapping[str, Any], page: int = 0
    ) -> Answer:
        sent = checked(operation.fields, {**_ALL.get(operation.name, {}), **fields})
        if operation.ask is None:
            return await self._shown(operation, sent, page)
        question = await operation.ask(self.control, self.words, sent)
        kept = sent.model_dump()
        if question.version is not None:
            kept["if_version"] = question.version
        token = await self.confirmations.ask(self.id, {"do": operation.name, "fields": kept})
        return Answer(asked(question), self.buttons.confirmation(question.yes, token))

    async def _shown(self, operation: Operation, sent: Any, number: int) -> Answer:
        """What is asked for, as one page of a message with its buttons."""
        found = await operation.act(self.control, sent)
        sheet, buttons = operation.sheet(self.words, found), self.buttons
        if operation.name == "limits":
            sheet = self._with_commands(sheet)
        if operation.name == "bans" and len(found) == sent.limit:
            text = self.words("The first {count}. There may be more.", count=sent.limit)
            sheet = replace(sheet, foot=[text])
        page = page_of(sheet, number)
        if operation.name == "show":
            subject = Subject(**found.subject)
            paging = buttons.paging("who", page.number, page.more, **ids_of(subject))
            actions = buttons.actions(subject, found.banned is not None, page.number)
            return Answer(page.text, [*paging, *actions])
        above = buttons.subjects(page.subjects)
        if operation.name == "history" and found:
            earlier = [*(each.live.version for each in found[1:]), 0]
            above = rows(
                [buttons.button(f"↩ {each}", "rollback", first=each) for each in earlier], 5
            )
        return Answer(page.text, [*above, *buttons.paging(operation.name, page.number, page.more)])

    def _with_commands(self, sheet: Sheet) -> Sheet:
        commands = " ".join(f"/{self.prefix}{name}" for name in COMMANDS if name != "limits")
        text = self.words("Commands: {commands}", commands=commands)
        return replace(sheet, foot=[*sheet.foot, text])


# --- questions that wait --------------------------------------------------------------------------

SECONDS: Final = 120
"""Seconds in which the operator can answer."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{12}")


class Confirmations:
    """Questions that wait for an operator's answer.

    Each is kept under `<prefix>:ratelimit:audit:asked:<operator>:<token>`, so that the answer may
    reach any instance. Only this operator's answer finds it, and only once.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._prefix = limiter.key_prefix
        self._documents = limiter.storage.documents()

    async def ask(self, operator: int, action: Mapping[str, Any]) -> str:
        """Keep an action until the operator confirms it; returns the token of the question."""
        token = secrets.token_urlsafe(9)
        document = json.dumps(action, ensure_ascii=False).encode("utf-8", "backslashreplace")
        await self._documents.put(self._key(operator, token), document, SECONDS)
        return token

    async def take(self, operator: int, token: str) -> dict[str, Any] | None:
        """The action of a question; None if it is unknown, too old, or answered already."""
        if not _TOKEN.fullmatch(token):
            return None
        document = await self._documents.take(self._key(operator, token))
        return None if document is None else dict(json.loads(document))

    def _key(self, operator: int, token: str) -> str:
        return live_key(self._prefix, f"audit:asked:{operator}:{token}")
