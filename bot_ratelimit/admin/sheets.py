"""Sheets: what operators are shown, as lines and a table, for the shell and for Telegram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bot_ratelimit.admin.encoding import plain as plain_json
from bot_ratelimit.admin.views import (
    ConfigView,
    Entry,
    HealthView,
    InstanceView,
    RuleView,
    SubjectView,
    Total,
    Trial,
    Version,
)
from bot_ratelimit.admin.wording import ban_words, limit_of, paused, until, who
from bot_ratelimit.admin.words import Marked, Words, capital, code, joined, moment, plain
from bot_ratelimit.config.report import EVERYWHERE, OTHER_BOTS
from bot_ratelimit.limiter.arguments import FOREVER
from bot_ratelimit.limiter.statistics import HourCount, Refusals
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban

SCOPES: Final = {
    "user": "per user",
    "chat": "per chat",
    "member": "per user in a chat",
    "topic": "per topic",
    "global": "all users together",
}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page of a report."""

    lines: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    foot: Sequence[str] = ()
    title: str = ""
    """What it is about; only for Telegram, where a message has no command above it."""
    subjects: Sequence[Subject] = ()
    """Users and chats to look at more closely."""
    more: Sequence[Sheet] = ()
    """Further tables, for the shell."""


def limits(words: Words, view: ConfigView) -> Sheet:
    """Every rule, and whether all of them are off."""
    rows = [
        (
            code(each.name, 100),
            limit_of(words, each),
            words(SCOPES.get(each.scope or "", "counted by the bot's code")),
            words(each.where) if each.where in (EVERYWHERE, OTHER_BOTS) else code(each.where, 100),
            _origin(words, each),
        )
        for each in view.rules
    ]
    lines = [paused(words, view.off_until, view.live.off_by)] if view.off_until else []
    lines += [words("Problem: {problem}", problem=view.problem)] if view.problem else []
    foot = [_live(words, view)] if view.live.version else []
    handlers = sorted({name for each in view.instances for name in each.handlers})
    if handlers:
        text = "Handlers without a limit of their own, which can get one: {names}"
        foot.append(words(text, names=joined(code(name, 100) for name in handlers[:10])))
    foot += [] if view.instances else [nobody_reports(words, view.prefix)]
    head = [words(each) for each in ("NAME", "LIMIT", "COUNTED", "FOR", "FROM")]
    return Sheet(lines, head, rows, foot, words("Limits"))


def _origin(words: Words, view: RuleView) -> Marked:
    origin = words(f"from {view.origin}")
    otherwise: str | None = view.otherwise
    if view.function:
        otherwise = words("by {function}", function=code(view.function, 100))
    if view.limit is None or otherwise in (None, view.limit):
        return origin
    return words("{origin}, otherwise {limit}", origin=origin, limit=otherwise)


def _live(words: Words, view: ConfigView) -> Marked:
    """The newest version of the live changes, and how many instances obey it."""
    return words(
        "Live changes: version {version}, {what}, by {name}, {at}; "
        "in force on {obeying} of {instances} instances.",
        version=view.live.version,
        what=words.known(view.live.what),
        name=code(view.live.by, 80),
        at=moment(view.live.at),
        obeying=len(view.instances) - view.behind,
        instances=len(view.instances),
    )


def nobody_reports(words: Words, prefix: str) -> Marked:
    """That no bot with live limits runs with this prefix, and what to check."""
    return words(
        "No running bot reports under {prefix}: is REDIS_KEY_PREFIX that of the bot, and live=True "
        "in its code?",
        prefix=repr(prefix),
    )


def config(words: Words, view: ConfigView, *, settings: bool = True) -> Sheet:
    """What is in force, on which instances, and where it comes from."""
    live, rules = view.live, limits(words, view)
    lines = [
        words("prefix {prefix} on {storage}", prefix=view.prefix, storage=view.storage),
        *rules.lines,
    ]
    for text, ids in (("exempt: {ids}", live.exempt), ("not exempt: {ids}", live.limited)):
        lines += [words(text, ids=", ".join(map(str, sorted(ids))))] if ids else []
    rows = [
        (each.name, each.value, words(f"from {each.origin}")) for each in view.settings if settings
    ]
    head = [words(each) for each in ("SETTING", "VALUE", "FROM")]
    running = Sheet(head=[words(each) for each in ("INSTANCE", "VERSION", "STATE")],
                    rows=[_instance(words, view, each) for each in view.instances],
                    foot=rules.foot)  # fmt: skip
    more = [running, *([Sheet(head=head, rows=rows)] if rows else [])]
    return Sheet(lines, rules.head, rules.rows, title=words("Limits"), more=more)


def _instance(words: Words, view: ConfigView, each: InstanceView) -> tuple[object, ...]:
    """An instance, its version, and what is wrong with it."""
    state = words("up to date")
    if each.version != view.live.version:
        state = words("behind version {version}", version=view.live.version)
    others = [f"{rule.name} {plain(limit_of(words, rule))}" for rule in view.differing(each)]
    parts = [each.problem or state]
    parts += [words("other limits: {limits}", limits=joined(others))] if others else []
    parts += [words("documents rejected: {count}", count=each.rejected)] if each.rejected else []
    return code(each.name, 100), each.version if each.version >= 0 else "?", joined(parts, "; ")


def subject(words: Words, view: SubjectView) -> Sheet:
    """What a user or chat has left of each rule."""
    meant = Subject(**view.subject)  # type: ignore[arg-type]  # one dict of both
    lines = [joined([capital(who(words, meant)), _verdict(words, view)], ": ")]
    if view.off_until:
        lines.append(paused(words, view.off_until))
    if view.refused is not None:
        lines.append(words("Refused in the last 24 hours: {count}", count=view.refused))
    if view.banned is not None:
        lines.append(words("Banned {ban}", ban=ban_words(words, view.banned)))
    if view.allowed and not view.exempt and not view.off_until:
        lines += _unknown(words, view.unknown)
    rows = []
    for each in view.counts:
        left = words("{left} of {capacity} left", left=each.remaining, capacity=each.capacity)
        free = words("in {wait}", wait=words.duration(each.retry_after))
        told = (left, words("now") if each.allowed else free)
        if each.remaining is None:
            told = Marked("?"), Marked("?")
        rows.append((code(each.rule, 100), *told, code(each.key)))
    head = [words(name) for name in ("RULE", "LEFT", "ALLOWED", "KEY")]
    return Sheet(lines, head, rows)


def _verdict(words: Words, view: SubjectView) -> Marked:
    if view.exempt:
        ban = "exempt from all limits, so the ban does not apply"
        return words("exempt from all limits" if view.banned is None else ban)
    if view.allowed:
        is_known = not view.unknown or view.off_until
        return words("allowed" if is_known else "allowed by the limits that are known here")
    if view.banned is not None:
        return words("banned")
    return words("refused, allowed again in {wait}", wait=words.duration(view.retry_after))


def trial(words: Words, found: Trial) -> Sheet:
    """Whether an update would be handled, and if not, until when."""
    decision = found.decision
    if found.off_until:
        text = joined([words("Allowed."), paused(words, found.off_until)], " ")
    elif decision is None:
        text = words("Allowed: exempt from all limits." if found.exempt
                     else "Allowed by the limits that are known here." if found.unknown
                     else "Allowed: no limit applies.")  # fmt: skip
    elif decision.allowed:
        text = words("Allowed: {left} left of {rule}.", left=decision.remaining,
                     rule=_rule(words, decision.rule))  # fmt: skip
    elif decision.banned:
        forever = decision.retry_after >= FOREVER
        text = words("Refused: banned forever." if forever else "Refused: banned for {wait}.",
                     wait=words.duration(0 if forever else decision.retry_after))  # fmt: skip
    else:
        text = words("Refused by {rule}, for {wait}.", rule=_rule(words, decision.rule),
                     wait=words.duration(decision.retry_after))  # fmt: skip
    return Sheet([text, *(_unknown(words, found.unknown) if found.allowed else ())])


def _unknown(words: Words, rules: Sequence[str]) -> list[Marked]:
    """Which rules may refuse as well."""
    text = "Not known here: {rules}. A function in the bot's code decides, and may refuse."
    names = joined(code(name, 100) for name in rules)
    return [words(text, rules=names)] if rules else []


def trial_value(found: Trial) -> Any:
    """The same for programs: the fields of the decision, if there is one."""
    decision = {"allowed": True} if found.decision is None else plain_json(found.decision)
    more = {"exempt": found.exempt, "off_until": found.off_until, "unknown": found.unknown}
    return {**decision, **more}


def history_value(found: Sequence[Version]) -> Any:
    """The versions for programs: each document, and what it changed."""
    return [{**plain_json(each.live), "changed": each.changed} for each in found]


def _rule(words: Words, rule: Any) -> Marked:
    """A rule by its name and limit."""
    name = rule.path.rstrip(":") or "user"
    return joined([code(name), words("({limit})", limit=rule.limit)], " ")


def _table(
    words: Words,
    title: str,
    head: str,
    rows: Sequence[Sequence[object]],
    empty: str,
    subjects: Sequence[Subject] = (),
) -> Sheet:
    """A table with these headings, or a sentence if it is empty."""
    if not rows:
        return Sheet([words(empty)])
    return Sheet((), [words(name) for name in head.split()], rows, (), words(title), subjects)


def bans(words: Words, found: Sequence[Ban]) -> Sheet:
    """Who is banned."""
    rows = [
        (capital(who(words, each.subject)), until(words, each), each.by and code(each.by, 80),
         each.reason and code(each.reason, 200))
        for each in found
    ]  # fmt: skip
    subjects = [each.subject for each in found]
    return _table(words, "Bans", "WHO BANNED BY REASON", rows, "Nobody is banned.", subjects)


_NO_REFUSALS: Final = (
    "Nobody was refused, or the bot does not count: that needs statistics=True in its code."
)
_NO_DECISIONS: Final = (
    "Nothing was decided, or the bot does not count: that needs statistics=True in its code."
)


def top(words: Words, found: Sequence[Refusals]) -> Sheet:
    """The users who were refused most often."""
    rows = [(code(each.user), each.count) for each in found]
    users = [Subject(user=each.user) for each in found]
    return _table(words, "Refused most", "USER REFUSED", rows, _NO_REFUSALS, users)


def statistics(words: Words, found: Sequence[HourCount]) -> Sheet:
    """Decisions by hour, rule and outcome."""
    rows = [(moment(each.hour), each.rule, words(each.outcome), each.count) for each in found]
    return _table(words, "", "HOUR RULE OUTCOME COUNT", rows, _NO_DECISIONS)


def hours(words: Words, found: Sequence[Total]) -> Sheet:
    """Decisions by hour; hours without any are left out."""
    rows = [
        (f"{each.at:%H:%M}", joined([each.allowed, each.refused, each.banned], " / "))
        for each in found
        if each.allowed or each.refused or each.banned
    ]
    if not rows:
        return Sheet([words(_NO_DECISIONS)])
    lines = [words("allowed / refused / banned, by hour (UTC)")]
    return Sheet(lines, (), rows, (), words("Decisions"))


def history(words: Words, found: Sequence[Version]) -> Sheet:
    """The versions to roll back to."""
    rows = [
        (each.live.version, moment(each.live.at), code(each.live.by, 80),
         words.known(each.live.what), words.known("; ".join(each.changed)))
        for each in found
    ]  # fmt: skip
    head = "VERSION WHEN BY WHAT CHANGED"
    return _table(words, "Versions", head, rows, "Nothing was changed yet.")


def audit(words: Words, found: Sequence[Entry]) -> Sheet:
    """What operators did."""
    rows = [
        (moment(each.at), code(each.by, 80), words.known(each.what),
         words.known("; ".join(each.changed)))
        for each in found
    ]  # fmt: skip
    return _table(words, "Actions of operators", "WHEN BY WHAT CHANGED", rows, "No actions yet.")


MEANWHILE: Final = {
    "allow": "Redis does not answer: meanwhile the bot handles every update, without a limit.",
    "deny": "Redis does not answer: meanwhile the bot refuses every update.",
    "memory": "Redis does not answer: meanwhile each instance counts for itself.",
}


def health(words: Words, view: HealthView) -> Sheet:
    """Whether limits are enforced; in an outage first what that means for users."""
    lines = [paused(words, view.off_until, view.off_by)] if view.off_until else []
    known = {"instances": view.instances, "version": view.version, "behind": view.behind}
    if view.is_out:
        policy = "allow" if view.off_until else view.policy
        lines.append(words(MEANWHILE.get(policy, MEANWHILE["allow"])))
        since = view.out_for
        text = "For {time}: {problem}" if since else "{problem}"
        lines.append(words(text, time=words.duration(since or 0), problem=view.problem))
    elif view.problem:
        lines.append(words("Unhealthy: {problem}", problem=view.problem))
    elif view.limiter.source == "memory":
        text = "Healthy, in this process alone: without Redis, each instance counts for itself."
        lines.append(words(text))
    else:
        if view.behind:
            text = "Instances that do not obey version {version} yet: {behind}."
            lines.append(words(text, **known))
        text = (
            "Redis answered in {ms} ms. Instances: {instances}, behind version {version}: {behind}."
        )
        lines.append(words(text, ms=round(view.seconds * 1e3), **known))
    return Sheet(lines)
