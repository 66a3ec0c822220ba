"""Live commands: what operators are asked before the limits of all instances change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bot_ratelimit.admin import wording
from bot_ratelimit.admin.changes import check_pause
from bot_ratelimit.admin.telegram.buttons import Answer
from bot_ratelimit.admin.telegram.context import CommandCall, Context
from bot_ratelimit.admin.telegram.targets import UnclearError
from bot_ratelimit.admin.telegram.texts import Html
from bot_ratelimit.config.limits_file import penalty_of
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject

_SWITCHES: Final[Mapping[str, Mapping[str, Any]]] = {
    "off": {"off": True},
    "on": {"off": False},
    "shadow": {"shadow": True},
    "enforce": {"shadow": False},
    "default": {"default": True},
}


async def setlimit(context: Context, call: CommandCall) -> Answer:
    """Change a rule on every instance."""
    context.needs_live()
    name, wanted = [*call.arguments.split(maxsplit=1), "", ""][:2]
    known = [each.name for each in await context.control.limits()]
    if name not in known or not wanted:
        raise UnclearError("usage_setlimit", command=call.name, names=", ".join(known))
    change: dict[str, Any] = dict(_SWITCHES.get(wanted.lower()) or {"limit": wanted})
    seen = await context.control.preview(name, **change)
    text = context.words(
        "ask_set",
        name=name,
        before=context.write.limit(seen.before),
        after=context.write.limit(seen.after),
    )
    return await context.ask("set", text, name=name, change=change, version=seen.version)


async def penalty(context: Context, call: CommandCall) -> Answer:
    """Change or add the ban for users who keep sending."""
    context.needs_live()
    match call.arguments.lower().split():
        case ["default"]:
            table, after = None, context.words("penalty_default")
        case [attempts, ban, *options] if options in ([], ["grows"]):
            table = {"after": attempts, "ban": ban} | ({"grows": True} if options else {})
            after = context.write.penalty(penalty_of(table))
        case _:
            raise UnclearError("usage_penalty", command=call.name)
    # Before the limits are read: a change in between must be a conflict.
    version = (await context.control.changes.current()).version
    found = [context.write.limit(each) for each in await context.control.limits() if each.ban_ms]
    before = "; ".join(found) or context.words("no_penalty")
    text = context.words("ask_penalty", before=Html(before), after=after)
    return await context.ask("penalty", text, table=table, version=version)


async def exempt(context: Context, call: CommandCall) -> Answer:
    """Exempt a user or chat from all limits; with `off`, limit them again."""
    context.needs_live()
    found, rest = await call.target(context)
    if rest.lower() not in ("", "off"):
        raise UnclearError("usage_exempt", command=call.name)
    # In a group it is about the user alone: an exemption holds in every chat.
    target = found if found.user is None else Subject(user=found.user)
    version = (await context.control.changes.current()).version
    do = "limit" if rest else "exempt"
    text = context.words(f"ask_{do}", who=context.write.who(target))
    return await context.ask(do, text, id_=target.user or target.chat, version=version)


async def rollback(context: Context, call: CommandCall) -> Answer:
    """Return to an earlier version."""
    number = call.arguments.strip()
    if number and not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise UnclearError("usage_rollback")
    return await ask_rollback(context, int(number) if number else None)


async def ask_rollback(context: Context, version: int | None) -> Answer:
    """The question, after the command or a button."""
    context.needs_live()
    known = {0, *(each.version for each in await context.control.changes.history())}
    if version is not None and version not in known:
        versions = ", ".join(map(str, sorted(known)))
        raise UnclearError("no_version", version=version, versions=versions)
    found = await context.control.changes.preview_rollback(version)
    to, seen = found.target.version, found.live.version
    if found.is_invalid and version is None:
        return await context.ask(
            "rollback", context.words("ask_rollback_invalid"), to=to, version=seen
        )
    changes = wording.changes(found.target) or context.words("no_changes")
    text = context.words("ask_rollback", version=to, changes=changes)
    return await context.ask("rollback", text, to=to, version=seen)


async def pause(context: Context, call: CommandCall) -> Answer:
    """Switch all limits off for some time."""
    context.needs_live()
    try:
        seconds = check_pause(call.arguments)
    except ConfigError:
        raise UnclearError("usage_pause", command=call.name) from None
    version = (await context.control.changes.current()).version
    text = context.words("ask_pause", length=context.words.duration(seconds))
    return await context.ask("pause", text, length=call.arguments, version=version)


async def resume(context: Context, call: CommandCall) -> Answer:
    """Switch all limits on again."""
    context.needs_live()
    version = (await context.control.changes.current()).version
    return await context.ask("resume", context.words("ask_resume"), version=version)
