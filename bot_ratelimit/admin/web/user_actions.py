"""User actions: forgive, ban, unban and exempt one user or chat."""

from __future__ import annotations

import math
import time
from typing import Any

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.web.actions import Action
from bot_ratelimit.admin.web.forms import Form
from bot_ratelimit.admin.web.rendering import link, who
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_ban_length, check_text
from bot_ratelimit.rules.rule import Scope, Subject


def actions() -> list[Action]:
    """All of them."""
    return [
        Action("forgive", _before_forgiving, _forgive),
        Action("ban", _before_ban, _ban),
        Action("unban", _before_unban, _unban),
        Action("exempt", _before_exempting, _exempt),
    ]


def _ids(subject: Subject) -> dict[str, Any]:
    return {name: each for name, each in subject._asdict().items() if each is not None}


def _page_of(subject: Subject) -> tuple[str, str]:
    return f"user?{link(subject)}", who(subject).capitalize()


def _after(subject: Subject, what: str, count: int) -> str:
    return f"user?{link(subject)}&done={what}&count={count}"


async def _before_forgiving(control: Control, form: Form) -> dict[str, Any]:
    subject, names = form.subject(), form.texts("rule")
    view = await control.show(subject)
    shared = {rule.name for rule in await control.limits() if rule.scope == Scope.GLOBAL.value}
    counted = [
        each
        for each in view.counts
        if each.rule not in shared and (each.remaining != each.capacity or not each.allowed)
    ]
    chosen = [each for each in counted if not names or each.rule in names]
    sends = {**_ids(subject), "rule": [each.rule for each in chosen if names]}
    return {
        "back": _page_of(subject),
        "subject": subject,
        "ids": _ids(subject),
        "view": view,
        "counted": counted,
        "chosen": chosen,
        "sends": None if names and not chosen else sends,  # no name means all counts
    }


async def _forgive(control: Control, form: Form) -> str:
    subject = form.subject()
    forgotten = await control.forgive(subject, form.texts("rule"))
    return _after(subject, "forgiven", len(forgotten))


async def _before_ban(control: Control, form: Form) -> dict[str, Any]:
    found: dict[str, Any] = {"subject": None, "back": ("bans", "Bans")}
    if not any(name in form for name in ("user", "chat", "how_long")):
        return found
    try:
        subject = form.ban_subject()
        found |= {"subject": subject, "back": _page_of(subject)}
        if "how_long" not in form:
            return found
        seconds = check_ban_length(_length(form))
        check_text("reason", form.text("reason"))
    except ConfigError as error:
        return {**found, "error": str(error)}
    before = [ban for ban in await control.limiter.bans_of(subject) if ban.subject == subject]
    try:
        view = await control.show(form.subject())
    except ConfigError:  # where each bot counts for itself, there is no state for all bots
        view = None
    return found | {
        "until": None if math.isinf(seconds) else time.time() + seconds,
        "before": before[0] if before else None,
        "view": view,
        "sends": {**_ids(subject), **{name: form.text(name) for name in ("how_long", "reason")}},
    }


def _length(form: Form) -> str | None:
    text = form.text("how_long")
    return None if text == "forever" else text


async def _ban(control: Control, form: Form) -> str:
    subject = form.ban_subject()
    await control.ban(subject, _length(form), form.text("reason"))
    return _after(subject, "banned", 1)


async def _before_unban(control: Control, form: Form) -> dict[str, Any]:
    subject = form.ban_subject()
    found = await control.limiter.bans_of(subject)
    return {
        "back": _page_of(subject),
        "subject": subject,
        "bans": [ban for ban in found if ban.subject == subject],
        "sends": _ids(subject),
    }


async def _unban(control: Control, form: Form) -> str:
    subject = form.ban_subject()
    return _after(subject, "unbanned", int(await control.unban(subject)))


async def _before_exempting(control: Control, form: Form) -> dict[str, Any]:
    subject = form.subject()
    view = await control.show(subject)
    live = await control.changes.current()
    return {
        "back": _page_of(subject),
        "who": who(Subject(subject.user, None if subject.user else subject.chat)),
        "view": view,
        "sends": {
            **_ids(subject),
            "exempt": "no" if view.exempt else "yes",
            "version": live.version,
        },
    }


async def _exempt(control: Control, form: Form) -> str:
    subject = form.subject()
    id_: Any = subject.chat if subject.user is None else subject.user
    live = await control.changes.set_exempt(
        id_, form.flag("exempt") is not False, if_version=form.number("version")
    )
    return _after(subject, "changed", live.version)
