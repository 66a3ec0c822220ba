"""Limit actions: change a limit or the penalty, pause and resume all limits, roll back."""

from __future__ import annotations

import time
from typing import Any

from bot_ratelimit.admin.changes import check_pause
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.views import RuleView, named
from bot_ratelimit.admin.web.actions import Action
from bot_ratelimit.admin.web.forms import Form
from bot_ratelimit.admin.web.rendering import described
from bot_ratelimit.config.limits_file import penalty_of
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import ConfigError

_BACK = {"back": ("#limits-title", "Limits")}
_HISTORY = {"back": ("history", "History")}
_STATES = {"on": (False, False), "trial": (True, False), "off": (None, True)}


def actions() -> list[Action]:
    """All of them."""
    return [
        Action("limit", _before_limit, _set_limit),
        Action("penalty", _before_penalty, _set_penalty),
        Action("pause", _before_pause, _pause),
        Action("resume", _before_resume, _resume),
        Action("rollback", _before_rollback, _roll_back),
    ]


def _after(live: Overrides) -> str:
    return f"?done=changed&count={live.version}"


async def _before_limit(control: Control, form: Form) -> dict[str, Any]:
    rule = named(await control.limits(), form.text("name"))
    live = await control.changes.current()
    wanted, default = _wanted(rule, form), form.flag("default") is True
    shadow, off = wanted.get("shadow", rule.shadow), wanted.get("off", rule.off)
    found: dict[str, Any] = {
        **_BACK,
        "rule": rule,
        "mode": "off" if off else "trial" if shadow else "on",
        "is_changed": rule.name in live.rules,
        "back_to_default": default,
    }
    if not default and not {"state", "limit", "shadow", "off"} & {*_said(form)}:
        return found
    if not wanted and not default:
        return {**found, "error": "this is in force already: change the limit or the state"}
    try:
        preview = await control.preview(rule.name, **wanted, default=default)
    except ConfigError as error:
        return {**found, "error": str(error)}
    sends = {"name": rule.name, "version": preview.version, "default": "yes" if default else ""}
    said = {name: {True: "yes", False: "no"}.get(each, each) for name, each in wanted.items()}
    return {**found, "preview": preview, "sends": {**sends, **({} if default else said)}}


def _said(form: Form) -> list[str]:
    return [name for name in ("state", "limit", "shadow", "off") if name in form]


def _wanted(rule: RuleView, form: Form) -> dict[str, Any]:
    """The requested changes of a rule: only values that differ from those in force."""
    shadow, off = _STATES.get(form.text("state"), (form.flag("shadow"), form.flag("off")))
    given = {"limit": form.text("limit") or None, "shadow": shadow, "off": off}
    return {
        name: each
        for name, each in given.items()
        if each is not None and each != getattr(rule, name)
    }


async def _set_limit(control: Control, form: Form) -> str:
    name, version = form.text("name"), form.number("version")
    if form.flag("default"):
        return _after(await control.changes.unset_rule(name, if_version=version))
    live = await control.set_rule(
        name,
        form.text("limit") or None,
        shadow=form.flag("shadow"),
        off=form.flag("off"),
        if_version=version,
    )
    return _after(live)


async def _before_penalty(control: Control, form: Form) -> dict[str, Any]:
    rule = next((each for each in await control.limits() if each.ban_ms), None)
    live = await control.changes.current()
    default = form.flag("default") is True
    asked = "after" in form or "ban" in form
    found: dict[str, Any] = {
        **_BACK,
        "rule": rule,
        "length": f"{rule.ban_ms // 1_000}s" if rule else "15m",
        "grows": form.flag("grows") if asked else bool(rule and rule.longest_ms),
        "is_changed": live.penalty is not None,
        "back_to_default": default,
    }
    if default:
        return {**found, "sends": {"default": "yes", "version": live.version}}
    if not asked:
        return found
    try:
        penalty_of(_table(form))
    except ConfigError as error:
        return {**found, "error": str(error)}
    sends = {name: form.text(name) for name in ("after", "ban", "grows")}
    return {**found, "sends": {**sends, "version": live.version}}


def _table(form: Form) -> dict[str, Any]:
    grows = {"grows": True} if form.flag("grows") else {}
    return {"after": form.text("after"), "ban": form.text("ban"), **grows}


async def _set_penalty(control: Control, form: Form) -> str:
    version = form.number("version")
    table: dict[str, Any] = {"after": None} if form.flag("default") else _table(form)
    return _after(await control.changes.set_penalty(**table, if_version=version))


async def _before_pause(control: Control, form: Form) -> dict[str, Any]:
    if "how_long" not in form:
        return {**_BACK}
    try:
        seconds = check_pause(form.text("how_long"))
    except ConfigError as error:
        return {**_BACK, "error": str(error)}
    live = await control.changes.current()
    sends = {"how_long": form.text("how_long"), "version": live.version}
    return {**_BACK, "until": time.time() + seconds, "sends": sends}


async def _pause(control: Control, form: Form) -> str:
    how_long, version = form.text("how_long"), form.number("version")
    return _after(await control.changes.pause(how_long, if_version=version))


async def _before_resume(control: Control, form: Form) -> dict[str, Any]:
    return {**_BACK, "sends": {"version": (await control.changes.current()).version}}


async def _resume(control: Control, form: Form) -> str:
    return _after(await control.changes.resume(if_version=form.number("version")))


async def _before_rollback(control: Control, form: Form) -> dict[str, Any]:
    asked = form.number("to") if "to" in form else form.number("version")
    found = await control.changes.preview_rollback(asked)
    live, target = found.live, found.target
    now, then = described(live), described(target)
    return {
        **_HISTORY,
        "target": target,
        "is_invalid": found.is_invalid,
        "current": live.version,
        "kept": [each for each in then if each in now],
        "added": [each for each in then if each not in now],
        "dropped": [each for each in now if each not in then],
        "sends": {"to": target.version, "version": live.version},
    }


async def _roll_back(control: Control, form: Form) -> str:
    to, version = form.number("to"), form.number("version")
    return _after(await control.changes.rollback(to, if_version=version))
