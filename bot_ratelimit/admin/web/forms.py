"""Forms: an operation as a page in two steps: GET says what will happen, POST does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from bot_ratelimit.admin import questions
from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import Forgive, Target, checked
from bot_ratelimit.admin.operations import OPERATIONS, Operation
from bot_ratelimit.admin.web.console import control_of, words_of
from bot_ratelimit.admin.web.rendering import link, page
from bot_ratelimit.admin.web.requests import from_form, read_form
from bot_ratelimit.admin.wording import who
from bot_ratelimit.admin.words import Marked, Words, capital, code
from bot_ratelimit.errors import ConfigError

_STATES: Final = {
    "on": ("On: refuses excess updates", {"shadow": False, "off": False}),
    "trial": ("Trial: counts and reports, but refuses nobody", {"shadow": True, "off": False}),
    "off": ("Off: neither counts nor refuses", {"off": True}),
}
_TYPED: Final = {"how_long": "1h", "after": "10/minute"}
"""What a field contains at first, if it has no default."""


@dataclass(frozen=True, slots=True)
class Input:
    """A field of a form: a line of text, or choices."""

    name: str
    label: str
    value: str = ""
    hint: str = ""
    kind: str = "text"
    choices: tuple[tuple[str, object, bool], ...] = ()
    is_required: bool = False


More = Callable[[Control, Words, Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def _nothing(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Form:
    """The page of an operation."""

    path: str
    """Its path, the name of the operation."""
    title: str
    """What it is called before the fields are filled in."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The fields that are lines of text, and their labels."""
    waits_for: tuple[str, ...] = ()
    """Until one of these fields is given, nothing is asked."""
    more: More = _nothing
    """Returns other `inputs`, `links`, `kept` hidden fields and the `title`; what is `typed` in
    lines of text at first, and what is `asked` instead of what was given."""

    @property
    def operation(self) -> Operation:
        """What it does."""
        return OPERATIONS["set" if self.path == "limit" else self.path]

    def routes(self) -> list[web.RouteDef]:
        """One route for the preview, one for the change."""
        return [web.get(f"/{self.path}", self._show), web.post(f"/{self.path}", self._do)]

    async def _show(self, request: web.Request) -> web.Response:
        return await self._shown(request, self._given(request.query))

    async def _do(self, request: web.Request) -> web.Response:
        given, words = self._given(await read_form(request)), words_of(request)
        try:
            sent = checked(self.operation.fields, given)
            found = await self.operation.done(control_of(request), sent)
        except ConflictError as error:
            text = words("Nothing was changed: {error}", error=error)
            given.pop("if_version", None)
            return await self._shown(request, given, text, 409)
        except ConfigError as error:
            return await self._shown(request, given, str(error), 422)
        done = {"done": self.operation.sheet(words, found).lines, "title": words(self.title)}
        return page(request, "done.html", {**done, "back": _back(self.path, given, words)})

    def _given(self, texts: MultiMapping[str]) -> dict[str, Any]:
        _, state = _STATES.get(texts.get("state", ""), ("", {}))
        return from_form(self.operation.fields, texts) | state

    async def _shown(
        self, request: web.Request, given: dict[str, Any], error: str = "", status: int = 200
    ) -> web.Response:
        control, words = control_of(request), words_of(request)
        more = await self.more(control, words, given)
        asked, typed = more.pop("asked", given), {**_TYPED, **more.pop("typed", {}), **given}
        inputs = [*(self._line(*each, typed) for each in self.labels.items()),
                  *more.pop("inputs", ())]  # fmt: skip
        names = {each.name for each in inputs}
        kept = {name: each for name, each in given.items() if name not in names}
        question, sends = None, dict[str, Any]()
        if not self.waits_for or any(name in given for name in self.waits_for):
            try:
                sent = checked(self.operation.fields, asked)
                assert self.operation.ask is not None  # noqa: S101 - each form changes something
                question = await self.operation.ask(control, words, sent)
                sends = {**asked, "if_version": question.version}
            except ConfigError as problem:
                error, status = error or str(problem), 422 if status == 200 else status
        shown = {
            "title": words(self.title), "path": self.path, "links": (), "kept": kept, **more,
            "inputs": inputs, "question": question, "sends": sends, "error": words.known(error),
            "is_wrong": status == 422, "back": _back(self.path, given, words),
        }  # fmt: skip
        return page(request, "operation.html", shown, status)

    def _line(self, name: str, label: str, typed: Mapping[str, Any]) -> Input:
        info = self.operation.fields.model_fields[name]
        value = typed.get(name, "" if info.is_required() else info.default)
        hint, is_required = info.description or "", info.is_required()
        return Input(name, label, str(value or ""), hint, is_required=is_required)


def _back(path: str, given: dict[str, Any], words: Words) -> tuple[str, Marked]:
    if path == "rollback":
        return "history", words("History")
    names = ("id", "chat", "bot", "as_user")
    try:
        sent = checked(Target, {name: given[name] for name in names if name in given})
    except ConfigError:
        return ("bans", words("Bans")) if path == "ban" else ("#limits-title", words("Limits"))
    return f"user?{link(sent.subject)}", capital(who(words, sent.subject))


# --- the fields of each form ----------------------------------------------------------------------


async def _forgive(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    sent = checked(Forgive, {**given, "rules": []})
    counts = questions.counted(await control.show(sent.subject), await control.limits())
    if len(counts) < 2:
        return {}
    chosen = given.get("rules") or [each.rule for each in counts]
    choices = tuple((each.rule, code(each.rule), each.rule in chosen) for each in counts)
    return {"inputs": [Input("rules", "Counts to delete", kind="checkbox", choices=choices)]}


async def _limit(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    rule = await control.rule(str(given.get("name", "")))
    live = await control.changes.current()
    inputs = []
    if not rule.ban_ms:
        hint = OPERATIONS["set"].fields.model_fields["limit"].description or ""
        inputs.append(Input("limit", "Limit", given.get("limit", rule.limit or ""), hint))
    shadow, off = given.get("shadow", rule.shadow), given.get("off", rule.off)
    mode = "off" if off else "trial" if shadow else "on"
    states = [each for each in _STATES if each != "trial" or not rule.ban_ms]
    choices = tuple((each, words(_STATES[each][0]), each == mode) for each in states)
    inputs.append(Input("state", "State", kind="radio", choices=choices))
    undo = f"limit?{urlencode({'name': rule.name, 'default': 'yes'})}"
    links = [(undo, words("Undo the live change"))] if rule.name in live.rules else []
    # Only what differs from what is in force: the form always sends all fields.
    same = {name for name in ("limit", "shadow", "off") if given.get(name) == getattr(rule, name)}
    return {"title": words("Change {name}", name=code(rule.name, 100)), "inputs": inputs,
            "kept": {"name": rule.name}, "links": links,
            "asked": {name: each for name, each in given.items() if name not in same}}  # fmt: skip


async def _penalty(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    rule = next((each for each in await control.limits() if each.ban_ms), None)
    live, fields = await control.changes.current(), OPERATIONS["penalty"].fields
    grows = given.get("grows", bool(rule and rule.longest_ms) if "after" not in given else False)
    text = words(fields.model_fields["grows"].description or "")
    growing = Input("grows", "Growing", kind="checkbox", choices=(("yes", text, bool(grows)),))
    links = [("penalty?after=default", words("Undo the live change"))] if live.penalty else []
    found = {"inputs": [growing], "links": links, "title": words("Add a penalty")}
    if rule is None:
        return found
    switch = words("Switch on") if rule.off else words("Switch off")
    links.append((f"limit?{urlencode({'name': rule.name})}", switch))
    typed = {"after": rule.limit, "ban": f"{rule.ban_ms // 1_000}s"}
    return {**found, "typed": typed, "title": words("Change the penalty")}


FORMS: Final = (
    Form("forgive", "Forgive", more=_forgive),
    Form("ban", "Ban somebody", {"id": "User", "chat": "Only in chat", "how_long": "How long",
                                 "reason": "Why"}, ("how_long",)),
    Form("unban", "Lift the ban"),
    Form("exempt", "Exemption"),
    Form("limit", "Change", waits_for=("limit", "shadow", "off", "default"), more=_limit),
    Form("penalty", "Change the penalty", {"after": "Refused attempts", "ban": "Length of the ban"},
         ("after",), _penalty),
    Form("pause", "Pause all limits", {"how_long": "How long"}, ("how_long",)),
    Form("resume", "Switch all limits on"),
    Form("rollback", "Roll back"),
)  # fmt: skip
