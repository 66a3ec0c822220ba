"""Wording: who, rules, bans and changes as text, the same for all front ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from bot_ratelimit.admin.views import RuleView
from bot_ratelimit.admin.words import Marked, Words, code, joined, moment, plain
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban

ENGLISH = Words()
_BUSINESS: Final = "in a business chat (connection {id})"


def who(words: Words, subject: Subject) -> Marked:
    """`user 42`, `chat -100123`, `user 42 in chat -100123`; a private chat is left out."""
    user, chat = subject.user, subject.chat
    if user is None:
        found = words("chat {id}", id=code(chat))
    else:
        channel = "channel {id} (or the anonymous admins of a group)"
        found = words("user {id}" if user > 0 else channel, id=code(user))
        if chat not in (None, user):
            found = words("{who} in chat {id}", who=found, id=code(chat))
    more = (("topic {id}", subject.topic), ("bot {id}", subject.bot), (_BUSINESS, subject.business))
    return joined([found, *(words(text, id=code(id_)) for text, id_ in more if id_ is not None)])


def limit_of(words: Words, view: RuleView) -> Marked:
    """What a rule allows, and whether it is a trial or off."""
    text: str = view.limit or words("by the bot's code")
    if view.limit is None and view.is_given:
        return words("as every handler")
    if view.limit is None and view.function:
        text = words("by {function}", function=code(view.function, 100))
    if view.ban_ms:
        length = words.duration(view.ban_ms / 1e3)
        text = words("ban of {length} after {limit}", length=length, limit=text)
        if view.longest_ms:
            longest = words.duration(view.longest_ms / 1e3)
            text = words("{ban}, growing to {longest}", ban=text, longest=longest)
    marks = [words(mark) for mark, on in (("trial", view.shadow), ("off", view.off)) if on]
    return joined([text, *([f"({joined(marks)})"] if marks else [])], " ")


def until(words: Words, ban: Ban) -> Marked:
    """`forever`, or `until 2026-03-01 12:00:00 UTC`."""
    return words("forever") if ban.until is None else words("until {at}", at=moment(ban.until))


def ban_words(words: Words, ban: Ban) -> Marked:
    """A ban: its end, who made it, and the reason."""
    business = ban.subject.business
    where = [words(_BUSINESS, id=code(business))] if business else []
    by = [words("by {name}", name=code(ban.by))] if ban.by else []
    return joined([until(words, ban), *where, *by, *([code(ban.reason)] if ban.reason else [])])


def paused(words: Words, off_until: float, by: str = "") -> Marked:
    """That all limits are off, until when, and who did it."""
    if by:
        return words("All limits are off until {at}, by {name}.", at=moment(off_until), name=by)
    return words("All limits are off until {at}.", at=moment(off_until))


def as_changed(view: RuleView, live: Overrides) -> RuleView:
    """A rule as this version has it, even if the instances have not read that version yet."""
    change = live.rules.get(view.name, {})
    limit = view.limit if view.otherwise is None else view.otherwise
    limit = None if view.is_given or view.function else limit
    shadow = view.shadow if view.otherwise_shadow is None else view.otherwise_shadow
    off = bool(change.get("off"))
    if view.ban_ms:
        return replace(view, off=off)
    return replace(
        view, limit=change.get("limit", limit), shadow=change.get("shadow", shadow), off=off
    )


def differences(
    before: Overrides, after: Overrides, rules: Iterable[RuleView] = ()
) -> tuple[str, ...]:
    """What differs between two versions: `messages: 5/10s -> 3/10s`, `exempt: 42 added`.

    Limits without a live change are known from the rules in force.
    """
    known = {view.name: view for view in rules}
    found = [
        f"{name}: {_rule(before, name, known)} -> {_rule(after, name, known)}"
        for name in sorted({*before.rules, *after.rules})
        if before.rules.get(name) != after.rules.get(name)
    ]
    if before.penalty != after.penalty:
        found.append(f"penalty: {_penalty(before.penalty)} -> {_penalty(after.penalty)}")
    for name, old, new in (
        ("exempt", before.exempt, after.exempt),
        ("not exempt", before.limited, after.limited),
    ):
        ids = [f"{id_} added" for id_ in sorted(new - old)]
        ids += [f"{id_} removed" for id_ in sorted(old - new)]
        found += [f"{name}: {', '.join(ids)}"] if ids else []
    if before.off_until != after.off_until:
        found.append(f"all limits: {_pause(before)} -> {_pause(after)}")
    return tuple(found)


def _rule(live: Overrides, name: str, known: Mapping[str, RuleView]) -> str:
    change = live.rules.get(name, {})
    if name in known and (change or not known[name].is_given):
        return plain(limit_of(ENGLISH, as_changed(known[name], live)))
    words = [str(change["limit"])] if "limit" in change else []
    words += [word for word, on in (("trial", "shadow"), ("off", "off")) if change.get(on)]
    return " ".join(words) or "as configured"


def _penalty(table: Mapping[str, object] | None) -> str:
    if table is None:
        return "as configured"
    return f"{table['ban']} after {table['after']}" + (", growing" if table.get("grows") else "")


def _pause(live: Overrides) -> str:
    return f"off until {moment(live.off_until)}" if live.off_until else "on"
