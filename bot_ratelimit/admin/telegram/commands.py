"""Commands: what each of them shows, or asks before it changes something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from bot_ratelimit.admin.telegram.buttons import Answer, ButtonPress
from bot_ratelimit.admin.telegram.context import CommandCall, Context
from bot_ratelimit.admin.telegram.live_commands import (
    ask_rollback,
    exempt,
    pause,
    penalty,
    resume,
    rollback,
    setlimit,
)
from bot_ratelimit.admin.telegram.targets import UnclearError
from bot_ratelimit.admin.telegram.texts import Html
from bot_ratelimit.admin.views import named
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_ban_length, check_text
from bot_ratelimit.rules.rule import Subject

_BANS: Final = 8
"""Bans on a page."""
_FOREVER: Final = frozenset({"forever", "навсегда"})


# --- what is shown --------------------------------------------------------------------------------


async def limits(context: Context, call: CommandCall | None = None, page: int = 0) -> Answer:
    """Every rule, and the live version."""
    commands = [f"/{context.prefix}{name}" for name in COMMANDS if name != "limits"]
    return context.write.limits(await context.control.config(), context.live, page, commands)


async def who(context: Context, call: CommandCall) -> Answer:
    """What a user or chat has left of each rule."""
    subject, _ = await call.target(context)
    return await shown(context, subject)


async def shown(context: Context, subject: Subject, page: int = 0) -> Answer:
    """What this subject has left of each rule."""
    return context.write.subject(await context.control.show(subject), subject, page)


async def try_(context: Context, call: CommandCall) -> Answer:
    """Whether an update would be handled now."""
    subject, name = await call.target(context)
    return context.write.tried(subject, await context.control.try_(subject, name or None))


async def bans(context: Context, call: CommandCall | None = None, page: int = 0) -> Answer:
    """Who is banned."""
    found = await context.control.bans(page * _BANS, _BANS + 1)
    return context.write.bans(found, page, _BANS)


async def top(context: Context, call: CommandCall) -> Answer:
    """Who was refused most."""
    context.needs_statistics()
    return context.write.top(await context.control.top(10))


async def stats(context: Context, call: CommandCall) -> Answer:
    """Decisions by hour."""
    context.needs_statistics()
    return context.write.statistics(await context.control.by_hour(24))


async def history(context: Context, call: CommandCall | None = None, page: int = 0) -> Answer:
    """The versions to roll back to."""
    context.needs_live()
    return context.write.history(await context.control.changes.history(), page)


async def health(context: Context, call: CommandCall) -> Answer:
    """Whether limits hold."""
    return context.write.health(await context.control.health())


# --- what is asked --------------------------------------------------------------------------------


async def forgive(context: Context, call: CommandCall) -> Answer:
    """Delete the counts of a user or chat: all of them, or those of the named rules."""
    subject, rest = await call.target(context)
    return await ask_forgive(context, subject, rest.split())


async def ask_forgive(context: Context, subject: Subject, names: list[str]) -> Answer:
    """The question, after the command or a button."""
    known = await context.control.limits() if names else ()
    for name in names:
        named(known, name)
    who, key = context.write.who(subject), "ask_forgive_rules" if names else "ask_forgive"
    text = context.words(key, who=who, rules=", ".join(names))
    return await context.ask("forgive", text, subject=subject, names=names)


async def ban(context: Context, call: CommandCall) -> Answer:
    """Refuse everything from a user or chat for some time."""
    subject, rest = await call.target(context, " 1h")
    length, reason = [*rest.split(maxsplit=1), "", ""][:2]
    return await ask_ban(context, subject, length, reason, call.name)


async def ask_ban(
    context: Context, subject: Subject, length: str, reason: str, command: str = "ban"
) -> Answer:
    """The question, after the command or a button."""
    banned, reason = _banned(subject), check_text("reason", reason)
    who = context.write.who(banned)
    if banned.user in context.admins:
        raise UnclearError("is_admin", who=who)
    if length.lower() in _FOREVER:
        length, text = "forever", context.words("ask_ban_for_good", who=who)
    else:
        try:
            seconds = check_ban_length(length)
        except ConfigError:
            raise UnclearError("bad_length", command=command) from None
        text = context.words("ask_ban", who=who, length=context.words.duration(seconds))
    if reason:
        text = Html(f"{text}\n{context.words('reason', reason=reason)}")
    return await context.ask("ban", text, subject=banned, length=length, reason=reason)


async def unban(context: Context, call: CommandCall) -> Answer:
    """Lift a ban."""
    subject, _ = await call.target(context)
    return await ask_unban(context, subject)


async def ask_unban(context: Context, subject: Subject) -> Answer:
    """The question, after the command or a button."""
    banned = (await context.control.show(subject)).banned
    if banned is None:
        return Answer(context.words("did_unban_nothing", who=context.write.who(subject)))
    text = context.words("ask_unban", who=context.write.who(banned.subject))
    return await context.ask(
        "unban", f"{text}\n{context.write.ban(banned)}", subject=banned.subject
    )


def _banned(subject: Subject) -> Subject:
    """The target of a ban: a user everywhere, or a whole chat."""
    if subject.user is not None:
        return Subject(user=subject.user, bot=subject.bot)
    return Subject(chat=subject.chat, bot=subject.bot)


_Shows: TypeAlias = Callable[[Context, CommandCall], Awaitable[Answer]]

COMMANDS: Final[Mapping[str, _Shows]] = {
    "limits": limits,
    "who": who,
    "try": try_,
    "forgive": forgive,
    "ban": ban,
    "unban": unban,
    "bans": bans,
    "top": top,
    "stats": stats,
    "setlimit": setlimit,
    "penalty": penalty,
    "exempt": exempt,
    "history": history,
    "rollback": rollback,
    "pause": pause,
    "resume": resume,
    "health": health,
}
"""What each command answers."""


async def pressed(context: Context, press: ButtonPress) -> Answer:
    """The answer to a button other than yes and no."""
    topic = int(press.extra) if press.extra.isdecimal() else None
    subject = context.subject(press.first or None, press.second or None, topic)
    match press.what:
        case "limits":
            return await limits(context, page=press.page)
        case "bans":
            return await bans(context, page=press.page)
        case "history":
            return await history(context, page=press.page)
        case "free":
            return await ask_forgive(context, subject, [])
        case "hour" | "day":
            return await ask_ban(context, subject, f"1{press.what}", "")
        case "lift":
            return await ask_unban(context, subject)
        case "rollback":
            return await ask_rollback(context, press.first)
        case _:
            return await shown(context, subject, press.page)
