"""Questions: what operators confirm before something changes, and what they are told afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bot_ratelimit.admin import fields
from bot_ratelimit.admin.changes import check_pause
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.views import CountView, RuleView, SubjectView
from bot_ratelimit.admin.wording import ban_words, differences, limit_of, paused, until, who
from bot_ratelimit.admin.words import Marked, Words, capital, code, joined, moment
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.report import EVERYWHERE, report_of
from bot_ratelimit.config.tables import penalty_of
from bot_ratelimit.errors import RateLimitError
from bot_ratelimit.limiter.arguments import check_ban_length
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Scope, Subject
from bot_ratelimit.storage.banlist import Ban


@dataclass(frozen=True, slots=True)
class Question:
    """What would happen, for an operator to confirm."""

    text: Marked
    """`Ban user 42 for 1 h?`"""
    yes: Marked
    """The label of the button."""
    points: Sequence[Marked] = ()
    """What will happen, and what will not, in sentences."""
    version: int | None = None
    """The version of the live limits that the question is about: give it as `if_version`."""
    is_danger: bool = False
    """Whether users will feel it at once."""


@dataclass(frozen=True, slots=True)
class Forgiven:
    """Whose counts were deleted, of which rules, and the ban that is still in force."""

    rules: tuple[str, ...]
    subject: Subject
    banned: Ban | None


@dataclass(frozen=True, slots=True)
class Unbanned:
    """Whether there was a ban, and whose."""

    was_banned: bool
    subject: Subject


async def forgive(control: Control, words: Words, sent: fields.Forgive) -> Question:
    """Which counts are deleted, and which ban stays."""
    view, rules = await control.show(sent.subject), await control.limits()
    for name in sent.rules:
        await control.rule(name)
    counts = [each for each in counted(view, rules) if not sent.rules or each.rule in sent.rules]
    points = [_forgotten(words, each) for each in counts]
    ban = None if view.banned is None else ban_words(words, view.banned)
    if view.banned is not None and view.banned.subject.business:
        points.append(words("The ban {ban} ends.", ban=ban))
    points = points or [words("There are no such counts: nothing will happen.")]
    points.append(words("This takes effect at once, on every instance."))
    if view.banned is not None and not view.banned.key:
        points.append(words("The ban {ban} stays. It has to be lifted separately.", ban=ban))
    text = words("Forgive {who}?", who=who(words, sent.subject))
    return Question(text, words("Forgive"), points)


def counted(view: SubjectView, rules: Sequence[RuleView]) -> list[CountView]:
    """The counts that can be forgiven: not those of all users together, and not empty ones."""
    shared = {rule.name for rule in rules if rule.scope == Scope.GLOBAL.value}
    return [
        each
        for each in view.counts
        if each.rule not in shared
        and (each.remaining is None or each.remaining != each.capacity or not each.allowed)
    ]


def _forgotten(words: Words, each: CountView) -> Marked:
    if each.remaining is None or each.capacity is None:
        text = "{rule}: the count is deleted, if there is one."
        return words(text, rule=code(each.rule, 100))
    text = "{rule}: {used} of {capacity} used. The count is deleted."
    used = each.capacity - each.remaining
    return words(text, rule=code(each.rule, 100), used=used, capacity=each.capacity)


def forgiven(words: Words, found: Forgiven) -> Sheet:
    """What was deleted, and the ban that is left."""
    subject = capital(who(words, found.subject))
    lines = [words("{who}: there was nothing to forgive.", who=subject)]
    if found.rules:
        names = [code(name, 100) for name in found.rules]
        rules = joined(names if len(names) <= 20 else [*names[:20], "…"])
        lines = [words("{who} is forgiven: {rules}", who=subject, rules=rules)]
    if found.banned is not None:
        ban = ban_words(words, found.banned)
        lines.append(words("Still banned {ban}. That has to be lifted separately.", ban=ban))
    return Sheet(lines)


async def ban(control: Control, words: Words, sent: fields.Ban) -> Question:
    """Until when, and whether it has an effect."""
    subject, seconds = sent.subject, check_ban_length(sent.how_long)
    meant = who(words, subject)
    if math.isinf(seconds):
        text = words("Ban {who} forever?", who=meant)
        end = words("forever")
    else:
        text = words("Ban {who} for {length}?", who=meant, length=words.duration(seconds))
        end = words("until {at}", at=moment(time.time() + seconds))
    points = [
        words("Everything from {who} is refused {end}, except payments and service messages.",
              who=meant, end=end)
    ]  # fmt: skip
    if sent.reason:
        points.append(words("Reason: {reason}", reason=code(sent.reason)))
    for each in await control.limiter.bans_of(subject):
        if each.subject == subject:
            points.append(words("It replaces the ban {ban}.", ban=ban_words(words, each)))
            break
    points += await _without_effect(control, words, subject)
    points.append(words("Every instance enforces the ban within a second. It can be lifted."))
    return Question(text, words("Ban"), points, is_danger=True)


async def _without_effect(control: Control, words: Words, subject: Subject) -> list[Marked]:
    try:
        view = await control.show(subject)
    except RateLimitError:  # no state of all bots where each counts for itself, or a broken count
        return []
    if view.exempt:
        text = "It has no effect as long as {who} is exempt."
        return [words(text, who=who(words, subject))]
    if view.off_until:
        text = "It has no effect as long as all limits are off, until {at}."
        return [words(text, at=moment(view.off_until))]
    return []


def banned(words: Words, found: Ban) -> Sheet:
    """Until when."""
    subject = capital(who(words, found.subject))
    return Sheet([words("{who} is banned {until}.", who=subject, until=until(words, found))])


async def unban(control: Control, words: Words, sent: fields.Target) -> Question:
    """Which bans end."""
    bans = await control.bans_to_lift(sent.subject)
    meant = who(words, sent.subject)
    points = [words("The ban {ban} ends.", ban=ban_words(words, each)) for each in bans]
    if not points:
        points.append(words("{who} is not banned: nothing will happen.", who=capital(meant)))
        if sent.chat in (None, sent.id) and not sent.is_chat:
            text = "A ban in one chat is lifted with the id of the chat. In Telegram, reply there."
            points.append(words(text))
    points.append(words("This takes effect on every instance within a second."))
    return Question(words("Lift the ban of {who}?", who=meant), words("Unban"), points)


def unbanned(words: Words, found: Unbanned) -> Sheet:
    """Whether there was a ban."""
    text = "{who} is not banned any more." if found.was_banned else "{who} was not banned."
    return Sheet([words(text, who=capital(who(words, found.subject)))])


async def limit(control: Control, words: Words, sent: fields.Limit) -> Question:
    """The rule before and after."""
    seen = await control.preview(sent.name, **sent.change)
    before, after = seen.before, seen.after
    change = [words("{name}: {before} -> {after}", name=code(sent.name, 100),
                    before=limit_of(words, before), after=limit_of(words, after))]  # fmt: skip
    points: list[Marked] = []
    if after.off and not before.off:
        points.append(words("This limit refuses nobody any more, and counts nothing."))
    elif after.shadow and not before.shadow:
        points.append(words("This limit refuses nobody any more. It still counts."))
    elif before.shadow and not after.shadow:
        points.append(words("This limit refuses again."))
    if after.limit != before.limit and not (after.is_given and after.limit is None):
        points.append(words(_counts(before, after)))
    points += _obeyed_soon(words, seen.version, seen.instances)
    text = words("Change {name}?", name=code(sent.name, 100))
    return Question(text, words("Change"), [*change, *points], seen.version)


def _counts(before: RuleView, after: RuleView) -> str:
    """What becomes of the counts of a rule whose limit changes."""
    limits = [Limit.parse(each.limit) for each in (before, after) if each.limit is not None]
    if len(limits) == 1 and not before.is_given:
        return "Counts are kept if the function in the bot's code uses the same algorithm."
    if len(limits) == 2 and limits[0].key_part == limits[1].key_part:
        return "Counts are kept: users above the new limit have to wait."
    return "Counts are not kept: everybody starts from zero."


async def _seen(control: Control, words: Words) -> tuple[Overrides, list[Marked]]:
    """The live limits, and what a change of them means."""
    live = await control.changes.current()
    return live, _obeyed_soon(words, live.version, len(await control.instances()))


def _obeyed_soon(words: Words, version: int, instances: int) -> list[Marked]:
    text = "Running instances that obey within 5 seconds: {count}."
    nobody = "No running bot reports. It takes effect when a bot with live=True starts."
    undo = "This makes version {next}. You can roll back to version {version} at any time."
    return [
        words(text if instances else nobody, count=instances),
        words(undo, next=version + 1, version=version),
    ]


async def penalty(control: Control, words: Words, sent: fields.Penalty) -> Question:
    """The ban before and after."""
    after = words("as configured")
    if sent.table is not None:
        item = report_of(penalty_of(sent.table), Overrides(), EVERYWHERE, "live")
        after = limit_of(words, RuleView.of(item))
    # Before the limits are read: a change in between must be a conflict.
    live, soon = await _seen(control, words)
    found = [limit_of(words, each) for each in await control.limits() if each.ban_ms]
    change = words("penalty: {before} -> {after}", before=joined(found or [words("none")], "; "),
                   after=after)  # fmt: skip
    points = [change, words("Current bans do not change."), *soon]
    text = words("Change the ban for users who keep sending?")
    return Question(text, words("Change"), points, live.version)


async def exempt(control: Control, words: Words, sent: fields.Exempt) -> Question:
    """What an exemption means."""
    live, soon = await _seen(control, words)
    meant = who(words, Subject(chat=sent.id) if sent.id < 0 else Subject(user=sent.id))
    if sent.exempt:
        text, yes = words("Exempt {who} from all limits?", who=meant), words("Exempt")
        points = [words("No limit and no ban applies to {who} any more.", who=meant)]
    else:
        text, yes = words("Limit {who} again?", who=meant), words("Limit again")
        points = [words("All limits and bans apply, even if the bot's configuration exempts {who}.",
                        who=meant)]  # fmt: skip
    return Question(text, yes, [*points, *soon], live.version)


async def pause(control: Control, words: Words, sent: fields.Pause) -> Question:
    """Until when nobody is limited."""
    seconds = check_pause(sent.how_long)
    live, soon = await _seen(control, words)
    points = [words("No limit applies to anybody until {at}. A flood reaches the bot.",
                    at=moment(time.time() + seconds)),
              words("Bans have no effect in this time either."), *soon]  # fmt: skip
    text = words("Switch all limits off for {length}?", length=words.duration(seconds))
    return Question(text, words("Switch off"), points, live.version, is_danger=True)


async def resume(control: Control, words: Words, sent: fields.Versioned) -> Question:
    """That all limits are in force again."""
    live, soon = await _seen(control, words)
    points = [paused(words, live.off_until, live.off_by)] if live.off_until > time.time() else []
    text = words("Switch all limits on again?")
    return Question(text, words("Switch on"), [*points, *soon], live.version)


async def rollback(control: Control, words: Words, sent: fields.Rollback) -> Question:
    """What is different in the earlier version."""
    found = await control.changes.preview_rollback(sent.version)
    target, live = found.target, found.live
    if found.is_invalid:
        text = (
            "The live document is invalid; version {version} stays in force until it is replaced."
        )
        points = [words(text, version=live.version)]
    else:
        changed = differences(live, target, await control.limits())
        points = [joined([words.known(each)]) for each in changed]
        points = points or [words("Nothing changes: both versions are the same.")]
    if target.version:
        text = "Version {version}: {what}, by {name}, {at}"
        about = {"version": target.version, "what": words.known(target.what)}
        points.append(words(text, **about, name=code(target.by, 80), at=moment(target.at)))
    else:
        points.append(words("All live changes are dropped."))
    points += _obeyed_soon(words, live.version, len(await control.instances()))
    text = words("Roll back to version {version}?", version=target.version)
    return Question(text, words("Roll back"), points, live.version, is_danger=True)


async def clear(control: Control, words: Words, sent: fields.Clear) -> Question:
    """What is deleted."""
    what = words("everything" if sent.everything else "every count and ban")
    prefix = f"{control.limiter.key_prefix}:ratelimit:"
    points = [words("Deletes {what} under {prefix}, for all users and chats.", what=what,
                    prefix=prefix)]  # fmt: skip
    return Question(words("Clear?"), words("Clear"), points, is_danger=True)
