"""Actions: what happens when the operator confirms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from bot_ratelimit.admin.telegram.context import Context
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.rules.rule import Subject


async def forgive(context: Context, subject: list[Any], names: list[str]) -> str:
    """Delete counts; the answer mentions a ban by hand that is still in force."""
    target = Subject(*subject)
    found, who = await context.control.forgive(target, names), context.write.who(target)
    key = "did_forgive" if found else "did_forgive_nothing"
    text = context.words(key, who=who, rules=", ".join(found))
    banned = (await context.control.show(target)).banned
    return text if banned is None else f"{text}\n{context.write.ban(banned)}"


async def ban(context: Context, subject: list[Any], length: str, reason: str) -> str:
    """Refuse everything from a user or chat."""
    target = Subject(*subject)
    done = await context.control.ban(target, length, reason)
    return context.words(
        "did_ban", who=context.write.who(target), until=context.write.until(done.until)
    )


async def unban(context: Context, subject: list[Any]) -> str:
    """Lift every ban of exactly this subject."""
    target = Subject(*subject)
    done = await context.control.unban(target)
    return context.words(
        "did_unban" if done else "did_unban_nothing", who=context.write.who(target)
    )


async def set_(context: Context, name: str, change: dict[str, Any], version: int) -> str:
    """Change a rule, or undo its changes."""
    if "default" in change:
        return await _held(context, context.control.changes.unset_rule(name, if_version=version))
    return await _held(context, context.control.set_rule(name, **change, if_version=version))


async def penalty(context: Context, table: dict[str, Any] | None, version: int) -> str:
    """Change the ban for users who keep sending, or undo its changes."""
    wanted = table or {"after": None}
    return await _held(context, context.control.changes.set_penalty(**wanted, if_version=version))


async def exempt(context: Context, id_: int, version: int) -> str:
    """Exempt a user or chat from all limits."""
    return await _held(context, context.control.changes.set_exempt(id_, True, if_version=version))


async def limit(context: Context, id_: int, version: int) -> str:
    """Limit a user or chat, even if the bot exempts them."""
    return await _held(context, context.control.changes.set_exempt(id_, False, if_version=version))


async def rollback(context: Context, to: int | None, version: int | None) -> str:
    """Return to an earlier version."""
    return await _held(context, context.control.changes.rollback(to, if_version=version))


async def pause(context: Context, length: str, version: int) -> str:
    """Switch all limits off for some time."""
    return await _held(context, context.control.changes.pause(length, if_version=version))


async def resume(context: Context, version: int) -> str:
    """Switch all limits on again."""
    return await _held(context, context.control.changes.resume(if_version=version))


async def _held(context: Context, change: Awaitable[Overrides]) -> str:
    """Make a change, and say on how many instances it is in force."""
    made = await change
    instances = await context.control.wait_for(made.version)
    return context.words(
        "did_change",
        version=made.version,
        what=made.what,
        obeying=sum(each.version >= made.version for each in instances),
        instances=len(instances),
    )


ACTIONS: Final[Mapping[str, Callable[..., Awaitable[str]]]] = {
    "forgive": forgive,
    "ban": ban,
    "unban": unban,
    "set": set_,
    "penalty": penalty,
    "exempt": exempt,
    "limit": limit,
    "rollback": rollback,
    "pause": pause,
    "resume": resume,
}
"""The actions by the name that `Context.ask` was given, which also names the button's text."""

SLOW: Final = frozenset({"set", "penalty", "exempt", "limit", "rollback", "pause", "resume"})
"""Those that wait for the instances."""
