"""Rendering: the templates, which escape all values, and their filters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import bot_ratelimit
from bot_ratelimit.admin.web.console import console_of, root_of, session_of, words_of
from bot_ratelimit.admin.words import as_html, capital, plain
from bot_ratelimit.rules.rule import Subject

_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) UTC")


def page(
    request: web.Request, template: str, context: Mapping[str, Any], status: int = 200
) -> web.Response:
    """A response with a template, and with the values that every page needs."""
    console = console_of(request)
    shared = {
        "status": status,
        "words": words_of(request),
        "root": root_of(request),
        "session": session_of(request),
        "has_admins": bool(console.admins),
        "prefix": console.middleware.limiter.key_prefix,
        "release": bot_ratelimit.__version__,
    }
    text = _templates().get_template(template).render(shared, **context)
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
        "bare": plain,
        "heading": lambda text: plain(text).capitalize(),
        "hour": _hour,
        "number": "{:,}".format,
        "rich": _rich,
        "sentence": _sentence,
    }
    return found


def _rich(text: object) -> Markup:
    """A text as HTML: what is marked as code, and moments, which the script shows in local time."""
    if isinstance(text, int):
        return Markup(f"{text:,}")  # noqa: S704 - digits
    found = as_html("" if text is None else text).replace('"', "&quot;")
    shown = r'<time datetime="\1T\2Z" data-shows="second">\g<0></time>'
    return Markup(_MOMENT.sub(shown, found))  # noqa: S704 - escaped by as_html


def _hour(at: datetime) -> Markup:
    """Hours and minutes of a moment."""
    machine = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" data-shows="hour">{}</time>').format(machine, f"{at:%H:%M}")


def _sentence(text: object) -> str:
    """`user: expected an id` as a sentence, with a capital letter and a full stop."""
    found = plain(capital(text))
    return found + ("" if found.endswith((".", "!", "?")) else ".")


def link(subject: Subject) -> str:
    """A user or chat as the query of a link: `user=42&chat=-100123`."""
    user, chat, topic, bot, _ = subject
    ids = {
        "user": user,
        "chat": None if chat == user else chat,
        "topic": topic,
        "bot": bot,
        "as_user": "yes" if user is not None and user < 0 else None,
    }
    return urlencode({name: each for name, each in ids.items() if each is not None})
