"""Commands: what each of them shows or asks, and what is done when the operator says yes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from aiogram import Bot
from aiogram.enums import ChatType
from aiogram.types import Message

from bot_ratelimit.admin import wording
from bot_ratelimit.admin.confirmations import Confirmations
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.telegram.answers import Answer, Press, Writer
from bot_ratelimit.admin.telegram.targets import UnclearError, target_of
from bot_ratelimit.admin.telegram.texts import Html, Words
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limit import parse_period
from bot_ratelimit.overrides import Overrides
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


@dataclass(frozen=True, slots=True)
class Desk:
    """An operator at work.

    Attributes:
        control: Acts in the operator's name.
        words: In the operator's language.
        write: The same, for values.
        operator: The operator's id.
        admins: All of them.
        bot: Which bot it is.
        per_bot: Whether each bot counts for itself.
        live: Whether limits can be changed.
        prefix: What the names of commands begin with.
        confirmations: Where questions wait for their answer.
    """

    control: Control
    words: Words
    write: Writer
    operator: int
    admins: frozenset[int]
    bot: Bot
    per_bot: bool
    live: bool
    prefix: str
    confirmations: Confirmations

    def subject(self, user: int | None, chat: int | None, topic: int | None = None) -> Subject:
        """Who is looked at, where each bot counts for itself as this one's."""
        return Subject(user, chat, topic, self.bot.id if self.per_bot else None)

    async def ask(self, do: str, text: str, **action: Any) -> Answer:
        """Ask before something is done."""
        token = await self.confirmations.ask(self.operator, {"do": do, **action})
        return self.write.question(text, do, self.operator, token)

    def needs_live(self) -> None:
        """Raise UnclearError if the bot does not follow live changes."""
        if not self.live:
            raise UnclearError("needs_live")


@dataclass(frozen=True, slots=True)
class Said:
    """A command as it was given."""

    name: str
    """With the prefix."""
    arguments: str
    message: Message

    async def whom(self, desk: Desk, rest: str = "") -> tuple[Subject, str]:
        """Whom it is about, and the other arguments; in a group, as a member of that group."""
        try:
            found, other = await target_of(self.message, self.arguments, desk.bot)
        except UnclearError as error:
            error.fields |= {"command": self.name, "rest": rest}
            raise
        chat, topic = found.chat if found.user is None else found.user, None
        if found.user is not None and self.message.chat.type != ChatType.PRIVATE:
            chat = self.message.chat.id
            topic = self.message.message_thread_id if self.message.is_topic_message else None
        return desk.subject(found.user, chat, topic), other


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
    found = await desk.control.try_(subject, name or None)
    who, words = desk.write.who(subject), desk.words
    if found is None:
        return Answer(words("try_free", who=who))
    if found.allowed:
        return Answer(words("try_allowed", who=who, rule=found.rule, left=found.remaining))
    wait = words.duration(found.retry_after)
    return Answer(words("try_refused", who=who, rule=found.rule, wait=wait))


async def bans(desk: Desk, said: Said | None = None, page: int = 0) -> Answer:
    """Who is banned."""
    found = await desk.control.bans(page * _BANS, _BANS + 1)
    return desk.write.bans(found, page, _BANS)


async def top(desk: Desk, said: Said) -> Answer:
    """Who was refused most."""
    return desk.write.top(await desk.control.top(10))


async def stats(desk: Desk, said: Said) -> Answer:
    """Decisions by hour."""
    return desk.write.statistics(await desk.control.by_hour(24))


async def history(desk: Desk, said: Said | None = None, page: int = 0) -> Answer:
    """The versions to roll back to."""
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
        text, given = desk.words("ask_ban_for_good", who=who), None
    else:
        seconds = _period(length, "bad_length", command)
        text = desk.words("ask_ban", who=who, length=desk.words.duration(seconds))
        given = length
    if reason:
        text = Html(f"{text}\n{desk.words('reason', reason=reason)}")
    return await desk.ask("ban", text, subject=banned, length=given, reason=reason)


async def unban(desk: Desk, said: Said) -> Answer:
    """Lift a ban."""
    subject, _ = await said.whom(desk)
    return await ask_unban(desk, subject)


async def ask_unban(desk: Desk, subject: Subject) -> Answer:
    """The question, whoever asks for it."""
    banned = _banned(subject)
    text = desk.words("ask_unban", who=desk.write.who(banned))
    return await desk.ask("unban", text, subject=banned)


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
    known = {each.version: each for each in await desk.control.changes.history()}
    try:
        now = (await desk.control.changes.current()).version
    except ConfigError:
        text = desk.words("ask_rollback_invalid")
        return await desk.ask("rollback", text, to=version, version=None)
    if version is None:
        version = max((each for each in known if each < now), default=0)
    if version not in {0, *known}:
        versions = ", ".join(map(str, sorted({0, *known})))
        raise UnclearError("no_version", version=version, versions=versions)
    changes = wording.changes(known[version]) if version else ""
    text = desk.words("ask_rollback", version=version, changes=changes or desk.words("no_changes"))
    return await desk.ask("rollback", text, to=version, version=now)


async def pause(desk: Desk, said: Said) -> Answer:
    """Switch all limits off for a while."""
    desk.needs_live()
    seconds = _period(said.arguments, "usage_pause", said.name)
    if seconds > _LONGEST_PAUSE:
        raise UnclearError("usage_pause", command=said.name)
    version = (await desk.control.changes.current()).version
    text = desk.words("ask_pause", length=desk.words.duration(seconds))
    return await desk.ask("pause", text, length=said.arguments, version=version)


async def resume(desk: Desk, said: Said) -> Answer:
    """Switch all limits on again."""
    desk.needs_live()
    version = (await desk.control.changes.current()).version
    return await desk.ask("resume", desk.words("ask_resume"), version=version)


# --- what is done ---------------------------------------------------------------------------------


async def do_forgive(desk: Desk, subject: list[Any], names: list[str]) -> str:
    """Forgive, and tell what was forgotten."""
    whom = Subject(*subject)
    found, who = await desk.control.forgive(whom, names), desk.write.who(whom)
    if not found:
        return desk.words("did_forgive_nothing", who=who)
    return desk.words("did_forgive", who=who, rules=", ".join(found))


async def do_ban(desk: Desk, subject: list[Any], length: str | None, reason: str) -> str:
    """Ban, and tell until when."""
    whom = Subject(*subject)
    done = await desk.control.ban(whom, length, reason)
    return desk.words("did_ban", who=desk.write.who(whom), until=desk.write.until(done.until))


async def do_unban(desk: Desk, subject: list[Any]) -> str:
    """Unban, and tell whether there was a ban."""
    whom = Subject(*subject)
    done = await desk.control.unban(whom)
    return desk.words("did_unban" if done else "did_unban_nothing", who=desk.write.who(whom))


async def do_set(desk: Desk, name: str, change: dict[str, Any], version: int) -> str:
    """Change a rule, or take back what was changed."""
    if "default" in change:
        return await _held(desk, desk.control.changes.unset_rule(name, if_version=version))
    return await _held(desk, desk.control.set_rule(name, **change, if_version=version))


async def do_rollback(desk: Desk, to: int | None, version: int | None) -> str:
    """Roll back."""
    return await _held(desk, desk.control.changes.rollback(to, if_version=version))


async def do_pause(desk: Desk, length: str, version: int) -> str:
    """Switch all limits off."""
    return await _held(desk, desk.control.changes.pause(length, if_version=version))


async def do_resume(desk: Desk, version: int) -> str:
    """Switch all limits on."""
    return await _held(desk, desk.control.changes.resume(if_version=version))


async def _held(desk: Desk, change: Awaitable[Overrides]) -> str:
    """Make a change, and tell on how many instances it holds."""
    made = await change
    instances = await desk.control.wait_for(made.version)
    obeying = sum(each.version >= made.version for each in instances)
    return desk.words(
        "did_change",
        version=made.version,
        what=made.what,
        obeying=obeying,
        instances=len(instances),
    )


def _banned(subject: Subject) -> Subject:
    """Who is banned: a user everywhere, or a whole chat."""
    if subject.user is not None:
        return Subject(user=subject.user, bot=subject.bot)
    return Subject(chat=subject.chat, bot=subject.bot)


def _period(text: str, otherwise: str, command: str) -> float:
    try:
        return parse_period(text)
    except ConfigError:
        raise UnclearError(otherwise, command=command) from None


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

ACTIONS: Final[Mapping[str, Callable[..., Awaitable[str]]]] = {
    "forgive": do_forgive,
    "ban": do_ban,
    "unban": do_unban,
    "set": do_set,
    "rollback": do_rollback,
    "pause": do_pause,
    "resume": do_resume,
}
"""What is done when the operator says yes."""

SLOW: Final = frozenset({"set", "rollback", "pause", "resume"})
"""Actions that wait for the instances."""


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
        case "forgive":
            return await ask_forgive(desk, subject, [])
        case "hour" | "day":
            return await ask_ban(desk, subject, f"1{press.what}", "")
        case "unban":
            return await ask_unban(desk, subject)
        case "rollback":
            return await ask_rollback(desk, press.first)
        case _:
            return await shown(desk, subject, press.page)
