"""Operations: one table of what operators can do, for the shell, Telegram, HTTP and the page.

Each operation names its fields, how its result is shown, and, if it changes something, the question
that is asked first. The front ends add only their own form: arguments, messages, requests, pages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bot_ratelimit.admin import fields, questions, sending, sheets
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.questions import Forgiven, Question, Unbanned
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.views import InstanceView
from bot_ratelimit.admin.words import Words
from bot_ratelimit.config.overrides import Overrides

Act = Callable[[Control, Any], Awaitable[Any]]
Ask = Callable[[Control, Words, Any], Awaitable[Question]]


def _itself(found: Any) -> Any:
    return found


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that operators do."""

    name: str
    about: str
    """What it does, in a sentence: the help text."""
    act: Act
    """Does it, and returns the result."""
    show: Callable[[Words, Any], Sheet] | None
    """The result, for people; None if it is only for programs."""
    fields: type[fields.Fields] = fields.Fields
    ask: Ask | None = None
    """The question to confirm first; None if nothing changes."""
    http: tuple[str, ...] = ()
    """Its requests, such as `GET api/limits`."""
    value: Callable[[Any], Any] = field(default=_itself)
    """The result, for programs."""

    async def done(self, control: Control, sent: Any) -> Any:
        """Do it; after a change of live limits, wait some seconds for the instances to obey."""
        found = await self.act(control, sent)
        if not isinstance(found, Overrides):
            return found
        return Obeyed(found, await control.wait_for(found.version), control.limiter.key_prefix)

    def sheet(self, words: Words, found: Any) -> Sheet:
        """The result, for people."""
        assert self.show is not None  # noqa: S101 - what people ask for can be shown
        return self.show(words, found)


# --- what is done ---------------------------------------------------------------------------------


async def _forgive(control: Control, sent: fields.Forgive) -> Forgiven:
    done = await control.forgive(sent.subject, sent.rules)
    return Forgiven(done, sent.subject, (await control.show(sent.subject)).banned)


async def _unban(control: Control, sent: fields.Target) -> Unbanned:
    return Unbanned(await control.unban(sent.subject), sent.subject)


async def _penalty(control: Control, sent: fields.Penalty) -> Overrides:
    table = sent.table or {"after": None}
    return await control.changes.set_penalty(**table, if_version=sent.if_version)


@dataclass(frozen=True, slots=True)
class Obeyed:
    """A change of the live limits, and the instances that obey it."""

    live: Overrides
    instances: tuple[InstanceView, ...]
    prefix: str

    @property
    def obeying(self) -> int:
        """How many instances obey."""
        return sum(each.version >= self.live.version for each in self.instances)

    def to_json(self) -> dict[str, int]:
        """For programs."""
        running = len(self.instances)
        return {"version": self.live.version, "obeying": self.obeying, "instances": running}


def _changed(words: Words, found: Obeyed) -> Sheet:
    if not found.instances:
        written = words("Version {version} is written.", version=found.live.version)
        return Sheet([written, sheets.nobody_reports(words, found.prefix)])
    text = "Version {version} is in force on {obeying} of {instances} instances: {what}"
    return Sheet([words(text, what=words.known(found.live.what), **found.to_json())])


def _cleared(words: Words, found: int) -> Sheet:
    return Sheet([words("Keys deleted: {count}", count=found)])


# --- the table ------------------------------------------------------------------------------------

_READS: Final = (
    Operation("config", "Show what is in force, on which instances, and where it comes from.",
              lambda control, _: control.config(), sheets.config, http=("GET api/config",)),
    Operation("limits", "List every rule of every middleware and flag.",
              lambda control, _: control.config(), sheets.limits, http=("GET api/limits",),
              value=lambda found: found.rules),
    Operation("show", "Show what a user or chat has left of every rule; charges nothing.",
              lambda control, sent: control.show(sent.subject), sheets.subject, fields.Counted,
              http=("GET api/users/{id}", "GET api/chats/{id}")),
    Operation("try", "Test whether an update would be handled now; charges nothing.",
              lambda control, sent: control.try_(sent.subject, sent.rule), sheets.trial, fields.Try,
              http=("GET api/users/{id}/try", "GET api/chats/{id}/try"), value=sheets.trial_value),
    Operation("bans", "List all bans with their end, operator and reason; earliest end first.",
              lambda control, sent: control.bans(sent.offset, sent.limit), sheets.bans, fields.Page,
              http=("GET api/bans",)),
    Operation("top", "List the users who were refused most often.",
              lambda control, sent: control.top(sent.n, sent.hours), sheets.top, fields.Top,
              http=("GET api/top",)),
    Operation("stats", "Show decisions by hour, rule and outcome, over all instances.",
              lambda control, sent: control.statistics(sent.hours), sheets.statistics, fields.Hours,
              http=("GET api/statistics",)),
    Operation("by_hour", "Totals of each hour.",
              lambda control, sent: control.by_hour(sent.hours), sheets.hours, fields.Hours,
              http=("GET api/by_hour",)),
    Operation("by_minute", "Totals of each of the last 60 minutes.",
              lambda control, _: control.by_minute(), None, http=("GET api/by_minute",)),
    Operation("sending", "Show what the bot sends: requests, 429s, what waits, broadcasts.",
              lambda control, sent: control.sending(sent.hours), sending.sheet, fields.Recent,
              http=("GET api/sending",)),
    Operation("use", "Decisions of each rule.", lambda control, sent: control.use(sent.hours),
              None, fields.Hours, http=("GET api/use",)),
    Operation("instances", "The running instances.", lambda control, _: control.instances(),
              None, http=("GET api/instances",)),
    Operation("history", "List the versions to roll back to, and what each changed.",
              lambda control, _: control.history(), sheets.history, http=("GET api/history",),
              value=sheets.history_value),
    Operation("audit", "List the last 200 actions of operators.",
              lambda control, _: control.audit(), sheets.audit, http=("GET api/audit",)),
    Operation("health", "Check whether limits are enforced; the exit status says it, too.",
              lambda control, _: control.health(), sheets.health, http=("GET api/health",)),
    Operation("preview", "What a change of a rule would do.",
              lambda control, sent: control.preview(sent.name, **sent.change), None, fields.Limit,
              http=("POST api/preview",)),
)  # fmt: skip

_CHANGES: Final = (
    Operation("forgive", "Delete the counts of a user or chat, and lift a ban by a penalty.",
              _forgive, questions.forgiven, fields.Forgive, questions.forgive,
              ("POST api/users/{id}/forgive", "POST api/chats/{id}/forgive"),
              value=lambda found: {"forgiven": found.rules}),
    Operation("ban", "Refuse everything from a user or a chat, on every instance.",
              lambda control, sent: control.ban(sent.subject, sent.how_long, sent.reason),
              questions.banned, fields.Ban, questions.ban, ("PUT api/bans/{id}",)),
    Operation("unban", "Lift the ban of a user or a chat, also one by a penalty.",
              _unban, questions.unbanned, fields.Target, questions.unban,
              ("DELETE api/bans/{id}",), value=lambda found: {"unbanned": found.was_banned}),
    Operation("set", "Change a rule on every instance.",
              lambda control, sent: control.set_rule(
                  sent.name, if_version=sent.if_version, **sent.change),
              _changed, fields.Limit, questions.limit, ("PATCH api/limits/{name}",)),
    Operation("penalty", "Change or add the ban for users who keep sending while refused.",
              _penalty, _changed, fields.Penalty, questions.penalty, ("POST api/penalty",)),
    Operation("exempt", "Exempt a user or a chat from all limits, or limit them again.",
              lambda control, sent: control.changes.set_exempt(
                  sent.id, sent.exempt, if_version=sent.if_version),
              _changed, fields.Exempt, questions.exempt, ("POST api/exempt",)),
    Operation("pause", "Switch all limits off for some time.",
              lambda control, sent: control.changes.pause(
                  sent.how_long, if_version=sent.if_version),
              _changed, fields.Pause, questions.pause, ("POST api/pause",)),
    Operation("resume", "Switch all limits on again.",
              lambda control, sent: control.changes.resume(if_version=sent.if_version),
              _changed, fields.Versioned, questions.resume, ("POST api/resume",)),
    Operation("rollback", "Return to an earlier version of the live limits.",
              lambda control, sent: control.changes.rollback(
                  sent.version, if_version=sent.if_version),
              _changed, fields.Rollback, questions.rollback, ("POST api/rollback",)),
    Operation("clear", "Delete every count under the prefix; asks twice.",
              lambda control, sent: control.clear(everything=sent.everything),
              _cleared, fields.Clear, questions.clear, value=lambda found: {"keys": found}),
)  # fmt: skip

OPERATIONS: Final[Mapping[str, Operation]] = {each.name: each for each in (*_READS, *_CHANGES)}
