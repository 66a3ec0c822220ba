"""Commands: which operation each of them is, and how its arguments are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from bot_ratelimit.admin.fields import checked
from bot_ratelimit.admin.operations import OPERATIONS, Operation
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.telegram.buttons import ButtonPress, ids_of, rows
from bot_ratelimit.admin.telegram.context import Context, fields_of
from bot_ratelimit.admin.telegram.messages import Answer, page_of
from bot_ratelimit.admin.telegram.targets import UnclearError
from bot_ratelimit.admin.wording import who
from bot_ratelimit.admin.words import capital, code, joined
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_ban_length
from bot_ratelimit.rules.rule import Subject

_BANS: Final = 8
"""Bans on a page."""
_FOREVER: Final = frozenset({"forever", "навсегда"})
_SWITCHES: Final[Mapping[str, Mapping[str, Any]]] = {
    "off": {"off": True},
    "on": {"off": False},
    "shadow": {"shadow": True},
    "enforce": {"shadow": False},
    "default": {"default": True},
}
_EXAMPLES: Final = {
    "ban": "For how long? For example {example}, or `forever` instead of a period.",
    "setlimit": "For example {example}; instead of a limit also `off`, `on`, `shadow`, `enforce` "
    "or `default`. Names: {names}",
    "penalty": "For example {example}: a ban of 15 minutes after 10 refused messages in a minute. "
    "With `grows` at the end, 10 more refused messages during the ban double it. `default` undoes "
    "the change.",
    "exempt": "For example {example}, or with `off` at the end to limit them again.",
    "pause": "For how long? For example {example}, at most a day.",
    "rollback": "To which version? Give a number, for example {example}; 0 drops all changes, and "
    "without a number it is the previous version.",
}

_Reads: TypeAlias = Callable[[Context], Awaitable[dict[str, Any]]]


def _unclear(context: Context, name: str, example: str, **fields: object) -> UnclearError:
    return UnclearError(_EXAMPLES[name], example=code(f"/{context.name} {example}"), **fields)


async def _nothing(_: Context) -> dict[str, Any]:
    return {}


async def _somebody(context: Context) -> dict[str, Any]:
    return fields_of((await context.target())[0])


async def _try(context: Context) -> dict[str, Any]:
    subject, name = await context.target()
    return fields_of(subject) | ({"rule": name} if name else {})


async def _forgive(context: Context) -> dict[str, Any]:
    subject, names = await context.target()
    return fields_of(subject) | {"rules": names.split()}


async def _ban(context: Context) -> dict[str, Any]:
    subject, rest = await context.target(" 1h")
    length, reason = [*rest.split(maxsplit=1), "", ""][:2]
    if length.lower() in _FOREVER:
        return await _banned(context, subject) | {"how_long": None, "reason": reason}
    try:
        check_ban_length(length)
    except ConfigError:
        raise _unclear(context, "ban", "42 1h spam") from None
    return await _banned(context, subject) | {"how_long": length, "reason": reason}


async def _banned(context: Context, subject: Subject) -> dict[str, Any]:
    """The target of a ban: a user everywhere, or a whole chat."""
    live, _ = await context.control.changes.in_force()
    if subject.user in context.admins - live.limited:
        text = "{who} is an admin of this bot, and admins are never limited."
        raise UnclearError(text, who=capital(who(context.words, Subject(user=subject.user))))
    chat = None if subject.user is not None else subject.chat
    return fields_of(Subject(subject.user, chat, None, subject.bot))


async def _unban(context: Context) -> dict[str, Any]:
    subject, _ = await context.target()
    return await _in_force(context, subject)


async def _in_force(context: Context, subject: Subject) -> dict[str, Any]:
    """The subject of the ban in force."""
    found = (await context.control.show(subject)).banned
    if found is None:
        text = "{who} was not banned."
        raise UnclearError(text, who=capital(who(context.words, subject)))
    return fields_of(found.subject)


async def _set(context: Context) -> dict[str, Any]:
    name, wanted = [*context.arguments.split(maxsplit=1), "", ""][:2]
    known = [each.name for each in await context.control.limits()]
    given = {name for each in await context.control.instances() for name in each.handlers}
    if name not in {*known, *given} or not wanted:
        names = joined(code(each, 100) for each in known[:20])
        raise _unclear(context, "setlimit", "NAME 2/minute", names=names)
    return {"name": name, **(_SWITCHES.get(wanted.lower()) or {"limit": wanted})}


async def _penalty(context: Context) -> dict[str, Any]:
    match context.arguments.lower().split():
        case ["default"]:
            return {"after": None}
        case [after, ban]:
            return {"after": after, "ban": ban}
        case [after, ban, "grows"]:
            return {"after": after, "ban": ban, "grows": True}
    raise _unclear(context, "penalty", "10/minute 15m")


async def _exempt(context: Context) -> dict[str, Any]:
    found, rest = await context.target()
    if rest.lower() not in ("", "off"):
        raise _unclear(context, "exempt", "42")
    # In a group it is about the user alone: an exemption holds in every chat.
    return {"id": found.chat if found.user is None else found.user, "exempt": not rest}


async def _pause(context: Context) -> dict[str, Any]:
    if not context.arguments:
        raise _unclear(context, "pause", "1h")
    return {"how_long": context.arguments}


async def _rollback(context: Context) -> dict[str, Any]:
    number = context.arguments.strip()
    if number and not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise _unclear(context, "rollback", "3")
    return {"version": int(number)} if number else {}


COMMANDS: Final[Mapping[str, tuple[str, _Reads]]] = {
    "limits": ("limits", _nothing),
    "who": ("show", _somebody),
    "try": ("try", _try),
    "forgive": ("forgive", _forgive),
    "ban": ("ban", _ban),
    "unban": ("unban", _unban),
    "bans": ("bans", _nothing),
    "top": ("top", _nothing),
    "stats": ("by_hour", _nothing),
    "sending": ("sending", _nothing),
    "setlimit": ("set", _set),
    "penalty": ("penalty", _penalty),
    "exempt": ("exempt", _exempt),
    "history": ("history", _nothing),
    "rollback": ("rollback", _rollback),
    "pause": ("pause", _pause),
    "resume": ("resume", _nothing),
    "audit": ("audit", _nothing),
    "health": ("health", _nothing),
}
"""For each command, the operation and what reads its fields."""


async def answer(context: Context) -> Answer:
    """What a command shows, or asks before it changes something."""
    name, read = COMMANDS[context.name.removeprefix(context.prefix)]
    operation = OPERATIONS[name]
    context.check_needs(operation)
    fields = await read(context)
    if operation.ask is not None:
        return await context.ask(operation, fields)
    return await _shown(context, operation, fields)


async def _shown(
    context: Context, operation: Operation, fields: Mapping[str, Any], page: int = 0
) -> Answer:
    """What is asked for, as one page of a message with its buttons."""
    if operation.name == "bans":
        fields = {"offset": page * _BANS, "limit": _BANS + 1}
    found = await operation.act(context.control, checked(operation.fields, fields))
    sheet, buttons = operation.sheet(context.words, found), context.buttons
    if operation.name == "bans":
        sheet = replace(sheet, rows=sheet.rows[:_BANS], subjects=sheet.subjects[:_BANS])
        text, more = page_of(sheet, 0)[0], len(found) > _BANS
        return Answer(text, [*buttons.subjects(map(_looked_at, sheet.subjects)),
                             *buttons.paging("bans", page, more)])  # fmt: skip
    if operation.name == "limits":
        sheet = _with_commands(context, sheet)
    text, page, more = page_of(sheet, page)
    if operation.name == "show":
        subject = context.subject(found.subject.get("user"), found.subject.get("chat"),
                                  found.subject.get("topic"))  # fmt: skip
        paging = buttons.paging("who", page, more, **ids_of(subject))
        return Answer(text, [*paging, *buttons.actions(subject, found.banned is not None, page)])
    paging = buttons.paging(operation.name, page, more)
    if operation.name == "history" and found:
        earlier = [*(each.live.version for each in found[1:]), 0]
        back = [buttons.button(f"↩ {number}", "rollback", first=number) for number in earlier]
        return Answer(text, [*rows(back, 5), *paging])
    return Answer(text, [*buttons.subjects(map(_looked_at, sheet.subjects)), *paging])


def _with_commands(context: Context, sheet: Sheet) -> Sheet:
    commands = " ".join(f"/{context.prefix}{name}" for name in COMMANDS if name != "limits")
    foot = [*sheet.foot, context.words("Commands: {commands}", commands=commands)]
    if not context.live:
        text = "Limits cannot be changed here: that needs {option} in the bot."
        foot.insert(0, context.words(text, option=code("live=True")))
    return replace(sheet, foot=foot)


def _looked_at(subject: Subject) -> Subject:
    """The subject to show: a user without a chat is shown in their private chat."""
    return subject if subject.chat is not None else subject._replace(chat=subject.user)


async def pressed(context: Context, press: ButtonPress) -> Answer:
    """The answer to a button other than yes and no."""
    topic = int(press.extra) if press.extra.isdecimal() else None
    subject = context.subject(press.first or None, press.second or None, topic)
    match press.what:
        case "free":
            return await context.ask(OPERATIONS["forgive"], fields_of(subject))
        case "hour" | "day":
            banned = await _banned(context, subject)
            return await context.ask(OPERATIONS["ban"], banned | {"how_long": f"1{press.what}"})
        case "lift":
            return await context.ask(OPERATIONS["unban"], await _in_force(context, subject))
        case "rollback":
            context.check_needs(OPERATIONS["rollback"])
            return await context.ask(OPERATIONS["rollback"], {"version": press.first})
        case "limits" | "bans" | "history" | "audit" | "sending":
            return await _shown(context, OPERATIONS[press.what], {}, press.page)
        case _:
            return await _shown(context, OPERATIONS["show"], fields_of(subject), press.page)
