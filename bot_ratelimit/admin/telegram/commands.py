"""Commands: what each of them shows, or asks before something is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from bot_ratelimit.admin import wording
from bot_ratelimit.admin.telegram.buttons import Answer, Press
from bot_ratelimit.admin.telegram.desk import Desk, Said
from bot_ratelimit.admin.telegram.targets import UnclearError
from bot_ratelimit.admin.telegram.texts import Html
from bot_ratelimit.bans import check_ban_length
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limit import parse_period
from bot_ratelimit.rule import Subject

_BANS: Final = 8
"""Bans on a page."""
_FOREVER: Final = frozenset({"forever", "навсегда"})
_LONGEST_PAUSE: Final = 86_400
_SWITCHES: Final[Mapping[str, Mapping[str, Any]]] = {
    "off": {"off": True},
    "on": {"off": False},
    "shadow": {"shadow": True},
    "enforce": {"shadow": False},
    "default": {"default": True},
}


# --- what is shown --------------------------------------------------------------------------------


async def limits(desk: Desk, said: Said | None = None, page: int = 0) -> Answer:
    """Every rule, and the live version."""
    commands = [f"/{desk.prefix}{name}" for name in COMMANDS if name != "limits"]
    return desk.write.limits(await desk.control.config(), desk.live, page, commands)


async def who(desk: Desk, said: Said) -> Answer:
    """Where somebody stands."""
    subject, _ = await said.whom(desk)
    return await shown(desk, subject)


async def shown(desk: Desk, subject: Subject, page: int = 0) -> Answer:
    """Where this subject stands."""
    return desk.write.subject(await desk.control.show(subject), subject, page)


async def try_(desk: Desk, said: Said) -> Answer:
    """Whether an update would be handled now."""
    subject, name = await said.whom(desk)
    return desk.write.tried(subject, await desk.control.try_(subject, name or None))


async def bans(desk: Desk, said: Said | None = None, page: int = 0) -> Answer:
    """Who is banned."""
    found = await desk.control.bans(page * _BANS, _BANS + 1)
    return desk.write.bans(found, page, _BANS)


async def top(desk: Desk, said: Said) -> Answer:
    """Who was refused most."""
    desk.needs_statistics()
    return desk.write.top(await desk.control.top(10))


async def stats(desk: Desk, said: Said) -> Answer:
    """Decisions by hour."""
    desk.needs_statistics()
    return desk.write.statistics(await desk.control.by_hour(24))


async def history(desk: Desk, said: Said | None = None, page: int = 0) -> Answer:
    """The versions to roll back to."""
    desk.needs_live()
    return desk.write.history(await desk.control.changes.history(), page)


async def health(desk: Desk, said: Said) -> Answer:
    """Whether limits hold."""
    return desk.write.health(await desk.control.health())


# --- what is asked --------------------------------------------------------------------------------


async def forgive(desk: Desk, said: Said) -> Answer:
    """Forget what somebody was charged: everything, or what these rules charged."""
    subject, rest = await said.whom(desk)
    return await ask_forgive(desk, subject, rest.split())


async def ask_forgive(desk: Desk, subject: Subject, names: list[str]) -> Answer:
    """The question, whoever asks for it."""
    who, key = desk.write.who(subject), "ask_forgive_rules" if names else "ask_forgive"
    text = desk.words(key, who=who, rules=", ".join(names))
    return await desk.ask("forgive", text, subject=subject, names=names)


async def ban(desk: Desk, said: Said) -> Answer:
    """Refuse everything from somebody for a while."""
    subject, rest = await said.whom(desk, " 1h")
    length, reason = [*rest.split(maxsplit=1), "", ""][:2]
    return await ask_ban(desk, subject, length, reason, said.name)


async def ask_ban(
    desk: Desk, subject: Subject, length: str, reason: str, command: str = "ban"
) -> Answer:
    """The question, whoever asks for it."""
    banned = _banned(subject)
    who = desk.write.who(banned)
    if banned.user in desk.admins:
        raise UnclearError("is_admin", who=who)
    if length.lower() in _FOREVER:
        length, text = "forever", desk.words("ask_ban_for_good", who=who)
    else:
        try:
            seconds = check_ban_length(length)
        except ConfigError:
            raise UnclearError("bad_length", command=command) from None
        text = desk.words("ask_ban", who=who, length=desk.words.duration(seconds))
    if reason:
        text = Html(f"{text}\n{desk.words('reason', reason=reason)}")
    return await desk.ask("ban", text, subject=banned, length=length, reason=reason)


async def unban(desk: Desk, said: Said) -> Answer:
    """Lift a ban."""
    subject, _ = await said.whom(desk)
    return await ask_unban(desk, subject)


async def ask_unban(desk: Desk, subject: Subject) -> Answer:
    """The question, whoever asks for it."""
    banned = (await desk.control.show(subject)).banned
    if banned is None:
        return Answer(desk.words("did_unban_nothing", who=desk.write.who(subject)))
    text = desk.words("ask_unban", who=desk.write.who(banned.subject))
    return await desk.ask("unban", f"{text}\n{desk.write.ban(banned)}", subject=banned.subject)


async def setlimit(desk: Desk, said: Said) -> Answer:
    """Change a rule on every instance."""
    desk.needs_live()
    name, wanted = [*said.arguments.split(maxsplit=1), "", ""][:2]
    known = [each.name for each in await desk.control.limits()]
    if name not in known or not wanted:
        raise UnclearError("usage_setlimit", command=said.name, names=", ".join(known))
    change: dict[str, Any] = dict(_SWITCHES.get(wanted.lower()) or {"limit": wanted})
    seen = await desk.control.preview(name, **change)
    text = desk.words(
        "ask_set",
        name=name,
        before=desk.write.limit(seen.before),
        after=desk.write.limit(seen.after),
    )
    return await desk.ask("set", text, name=name, change=change, version=seen.version)


async def rollback(desk: Desk, said: Said) -> Answer:
    """Let an earlier version hold again."""
    number = said.arguments.strip()
    if number and not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise UnclearError("usage_rollback")
    return await ask_rollback(desk, int(number) if number else None)


async def ask_rollback(desk: Desk, version: int | None) -> Answer:
    """The question, whoever asks for it."""
    desk.needs_live()
    known = {0, *(each.version for each in await desk.control.changes.history())}
    if version is not None and version not in known:
        versions = ", ".join(map(str, sorted(known)))
        raise UnclearError("no_version", version=version, versions=versions)
    found = await desk.control.changes.preview_rollback(version)
    to, seen = found.target.version, found.live.version
    if found.is_invalid and version is None:
        return await desk.ask("rollback", desk.words("ask_rollback_invalid"), to=to, version=seen)
    changes = wording.changes(found.target) or desk.words("no_changes")
    text = desk.words("ask_rollback", version=to, changes=changes)
    return await desk.ask("rollback", text, to=to, version=seen)


async def pause(desk: Desk, said: Said) -> Answer:
    """Switch all limits off for a while."""
    desk.needs_live()
    try:
        seconds = parse_period(said.arguments)
    except ConfigError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_PAUSE:
        raise UnclearError("usage_pause", command=said.name)
    version = (await desk.control.changes.current()).version
    text = desk.words("ask_pause", length=desk.words.duration(seconds))
    return await desk.ask("pause", text, length=said.arguments, version=version)


async def resume(desk: Desk, said: Said) -> Answer:
    """Switch all limits on again."""
    desk.needs_live()
    version = (await desk.control.changes.current()).version
    return await desk.ask("resume", desk.words("ask_resume"), version=version)


def _banned(subject: Subject) -> Subject:
    """Who is banned: a user everywhere, or a whole chat."""
    if subject.user is not None:
        return Subject(user=subject.user, bot=subject.bot)
    return Subject(chat=subject.chat, bot=subject.bot)


_Shows: TypeAlias = Callable[[Desk, Said], Awaitable[Answer]]

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
    "history": history,
    "rollback": rollback,
    "pause": pause,
    "resume": resume,
    "health": health,
}
"""What each command answers."""


async def pressed(desk: Desk, press: Press) -> Answer:
    """What a button answers that is not a yes or no."""
    topic = int(press.extra) if press.extra.isdecimal() else None
    subject = desk.subject(press.first or None, press.second or None, topic)
    match press.what:
        case "limits":
            return await limits(desk, page=press.page)
        case "bans":
            return await bans(desk, page=press.page)
        case "history":
            return await history(desk, page=press.page)
        case "free":
            return await ask_forgive(desk, subject, [])
        case "hour" | "day":
            return await ask_ban(desk, subject, f"1{press.what}", "")
        case "lift":
            return await ask_unban(desk, subject)
        case "rollback":
            return await ask_rollback(desk, press.first)
        case _:
            return await shown(desk, subject, press.page)
