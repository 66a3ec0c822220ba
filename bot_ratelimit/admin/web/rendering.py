"""Rendering: the templates, which escape all values, and their filters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import bot_ratelimit
from bot_ratelimit.admin.views import RuleView
from bot_ratelimit.admin.web.console import console_of, session_of
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.rules.duration import duration
from bot_ratelimit.rules.rule import Subject


def page(
    request: web.Request, template: str, context: Mapping[str, Any], status: int = 200
) -> web.Response:
    """A response with a template, and with the values that every page needs."""
    console = console_of(request)
    found = _templates().get_template(template)
    text = found.render(
        context,
        status=status,
        root=console.root(request),
        session=session_of(request),
        has_admins=bool(console.admins),
        prefix=console.middleware.limiter.key_prefix,
        release=bot_ratelimit.__version__,
    )
    return web.Response(text=text, content_type="text/html", status=status)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("bot_ratelimit.admin.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "breakable": breakable,
        "described": described,
        "duration": duration,
        "limit": limit_of,
        "link": link,
        "moment": moment,
        "number": "{:,}".format,
        "sentence": sentence,
        "who": who,
    }
    return found


def moment(at: float | datetime) -> datetime:
    """A Unix time, or another, in UTC."""
    return at.astimezone(UTC) if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)


def breakable(text: str, after: str) -> Markup:
    """A long name in which the browser may break the line after each of these characters."""
    return escape(text).replace(after, Markup("{}<wbr>").format(after))


def sentence(text: str) -> str:
    """`user: expected an id` as a sentence, with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def who(subject: Subject | Mapping[str, Any]) -> str:
    """`user 42`, `chat -100123`, `user 42 in chat -100123`; a private chat is left out."""
    ids = dict(subject._asdict() if isinstance(subject, Subject) else subject)
    user, chat = ids.get("user"), ids.get("chat")
    if user is None or user == chat:
        found = f"chat {chat}" if user is None else f"user {user}"
    else:
        found = f"user {user}" + ("" if chat is None else f" in chat {chat}")
    others = [f", {name} {ids[name]}" for name in ("topic", "bot") if ids.get(name) is not None]
    return found + "".join(others)


def link(subject: Subject | Mapping[str, Any]) -> str:
    """A user or chat as the query of a link: `user=42&chat=-100123`."""
    ids = dict(subject._asdict() if isinstance(subject, Subject) else subject)
    if ids.get("user") == ids.get("chat"):  # the private chat is the default
        ids.pop("chat", None)
    names = ("user", "chat", "topic", "bot")
    return urlencode({name: ids[name] for name in names if ids.get(name) is not None})


def limit_of(view: RuleView) -> str:
    """What a rule allows."""
    text = view.limit or "by the bot's code"
    if not view.ban_ms:
        return text
    longest = f", growing to {duration(view.longest_ms / 1e3)}," if view.longest_ms else ""
    return f"ban of {duration(view.ban_ms / 1e3)}{longest} after {text}"


def described(live: Overrides) -> list[str]:
    """What a version changes, one text for each change."""
    found = []
    for name, change in sorted(live.rules.items()):
        words = [str(change["limit"])] if "limit" in change else []
        words += ["counts, but refuses nobody"] if change.get("shadow") else []
        words += ["refuses"] if change.get("shadow") is False else []
        words += ["off"] if change.get("off") else []
        words += ["on"] if change.get("off") is False else []
        found.append(f"{name}: {', '.join(words)}")
    if live.penalty is not None:
        table = live.penalty
        found.append(f"penalty: ban of {table.get('ban')} after {table.get('after')}")
    for kind, ids in (("exempt", live.exempt), ("not exempt", live.limited)):
        if ids:
            found.append(f"{kind}: {', '.join(map(str, sorted(ids)))}")
    if live.off_until:
        found.append(f"all limits off until {moment(live.off_until):%Y-%m-%d %H:%M} UTC")
    return found
