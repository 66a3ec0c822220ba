"""Fields: what each operation takes, the same in the shell, in Telegram, over HTTP and in forms.

The description of a field is its help text everywhere. A `Positional` field is an argument of the
command; every other field is an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bot_ratelimit.config.ids import LARGEST_ID, check_id
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_ban_length, check_text
from bot_ratelimit.rules.rule import Subject

_FOREVER: Final = frozenset({"forever", "навсегда"})
_MISSING: Final = {
    "id": "expected the id of a user, or the negative id of a chat",
    "name": "expected the name of a rule",
}
_DIGITS: Final = re.compile(r"-?[0-9]{1,17}", re.ASCII)


def check_admins(admins: Iterable[int]) -> frozenset[int]:
    """The ids of the users who may operate the bot.

    Raises:
        ConfigError: One of them is not the id of a person.
    """
    if not isinstance(admins, Iterable) or isinstance(admins, (str, bytes)):
        raise ConfigError(f"admins={admins!r}: expected ids of users, such as [42]")
    ids = [check_id(each, "admins") for each in admins]
    if wrong := [each for each in ids if each < 0]:
        raise ConfigError(f"admins: {wrong[0]} is the id of a chat: use the ids of persons")
    return frozenset(ids)


class Positional:
    """Marks a field that is an argument of the command, not an option."""


class Fields(BaseModel):
    """The fields of an operation: only these, each strictly of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _whole(value: object) -> object:
    """A whole number; in a query or a form it is text."""
    if not isinstance(value, str):
        return value
    if not _DIGITS.fullmatch(value):
        raise ValueError(f"{value[:50]!r}: expected a whole number, for example 123456789")
    return int(value)


def _length(value: str | None) -> str | None:
    """`forever` and None are a ban without end."""
    length = None if value and value.lower() in _FOREVER else value
    check_ban_length(length)
    return length


Id = Annotated[int, BeforeValidator(_whole), AfterValidator(check_id)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=LARGEST_ID)]
Number = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_000_000_000)]
Text = Annotated[str, Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Reason = Annotated[str, AfterValidator(lambda text: check_text("reason", text))]


_Fields = TypeVar("_Fields", bound=Fields)


class FieldError(ConfigError):
    """Some fields are invalid; the text says what is wrong with the first of them."""

    def __init__(self, text: str, wrong: Sequence[Mapping[str, str]]) -> None:
        super().__init__(text)
        self.wrong = wrong
        """Each `field`, and its `problem`."""


def checked(kind: type[_Fields], given: Mapping[str, Any]) -> _Fields:
    """The fields, if they are valid. FieldError if some of them are not."""
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        errors = error.errors(include_url=False)[:20]
    wrong = [  # a field that is no Unicode has no name
        {"field": ".".join(map(str, each["loc"])) or "a field", "problem": _problem(each)}
        for each in errors
    ]
    first, text = errors[0], f"{wrong[0]['field']}: {wrong[0]['problem']}"
    if first["loc"] == ("id",):  # which the front ends call by different names
        text = wrong[0]["problem"]
    if first["type"] == "missing":
        text = _MISSING.get(wrong[0]["field"], text)
    reason = first.get("ctx", {}).get("error")
    raise FieldError(str(reason) if isinstance(reason, ConfigError) else text, wrong)


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    found = error["msg"].removeprefix("Value error, ")
    return found[:1].lower() + found[1:]


def kind_of(field: FieldInfo) -> type:
    """The plain type of a field: bool, int, str or list; without what validates it, or None."""
    found = [field.annotation]
    for each in found:
        kind = get_origin(each) or each
        if kind in (bool, int, str, list):
            return kind
        found += [part for part in get_args(each) if part is not type(None)]
    raise TypeError(f"a field of {field.annotation}")


class Hours(Fields):
    """How many hours, up to now."""

    hours: Annotated[Number, Positional()] = Field(24, description="How many hours, up to now.")


class Recent(Fields):
    """Hours, or the last 60 minutes."""

    hours: Annotated[Number | None, Positional()] = Field(
        None, description="How many hours, up to now; by default the last 60 minutes."
    )


class Top(Fields):
    """The length of a ranking, and its hours."""

    n: Annotated[Number, Positional()] = Field(10, description="How many users.")
    hours: Number = Field(24, description="How many hours, up to now.")


class Page(Fields):
    """A part of a list."""

    offset: Number = Field(0, description="How many to skip.")
    limit: Number = Field(100, description="How many, up to 1000.")


class Target(Fields):
    """A user, everywhere or in one chat; or a whole chat."""

    id: Annotated[Id, Positional()] = Field(description="A user's id; a negative one is a chat's.")
    chat: Id | None = Field(None, description="Only in this chat.")
    bot: Positive | None = Field(None, description="The bot's id, if each bot counts for itself.")
    as_user: bool = Field(
        False, description="The id is that of a channel that writes in groups, not a whole chat."
    )

    @property
    def is_chat(self) -> bool:
        """Whether a whole chat is meant."""
        return self.id < 0 and not self.as_user

    @property
    def subject(self) -> Subject:
        """Who is meant."""
        if self.is_chat:
            return Subject(chat=self.id, bot=self.bot)
        return Subject(user=self.id, chat=self.chat, bot=self.bot)


class Counted(Target):
    """Whose counts: those of the private chat, unless another chat is named."""

    chat: Id | None = Field(None, description="A chat's id; by default the private chat.")
    topic: Positive | None = Field(None, description="A topic's id.")

    @property
    def subject(self) -> Subject:
        """Who is meant."""
        if self.is_chat:
            return Subject(None, self.id, self.topic, self.bot)
        return Subject(self.id, self.id if self.chat is None else self.chat, self.topic, self.bot)


class Try(Counted):
    """A trial decision."""

    rule: Name | None = Field(None, description="A handler's own limit, by name.")


class Forgive(Counted):
    """Which counts to delete; those of all rules by default."""

    rules: Annotated[list[Name], Field(max_length=100)] = Field(
        [], description="Only this rule; can be repeated."
    )


class Ban(Target):
    """Who is banned, and for how long."""

    how_long: Annotated[Annotated[Text | None, AfterValidator(_length)], Positional()] = Field(
        description="A period, for example 15m, 1h or 7d; or forever."
    )
    reason: Annotated[Reason, Positional()] = Field(
        "", description="Why, for the other operators; the user does not see it."
    )


class Versioned(Fields):
    """A change of the live limits."""

    if_version: Number | None = Field(
        None, description="Only if this is still the newest version of the live limits."
    )


class Limit(Versioned):
    """What to change of a rule; or `default`, which undoes all its changes."""

    name: Annotated[Name, Positional()] = Field(description="The rule's name, as in `limits`.")
    limit: Annotated[Text | None, Positional()] = Field(
        None, description="For example 5/minute, 3/10s sliding or 30/s burst 60."
    )
    shadow: bool | None = Field(None, description="Only count and report, or refuse.")
    off: bool | None = Field(None, description="Switch it off, or on.")
    default: bool = Field(False, description="Undo all changes of the rule.")

    @property
    def change(self) -> dict[str, Any]:
        """What is to change."""
        return self.model_dump(include={"limit", "shadow", "off", "default"})


class Penalty(Versioned):
    """A ban for users who keep sending; `after` None undoes the change."""

    after: Annotated[Text | None, Positional()] = Field(
        description="Refused attempts, for example 10/minute; 'default' undoes the change."
    )
    ban: Annotated[Text, Positional()] = Field("15m", description="For example 15m or 1h.")
    grows: bool = Field(
        False, description="Double the ban, up to a day, if the user keeps sending during it."
    )
    longest: Text | None = Field(None, description="The longest ban, if it grows.")

    @property
    def table(self) -> dict[str, Any] | None:
        """As in a limits file; None undoes the change."""
        if self.after in (None, "default"):
            return None
        more = {name: each for name in ("grows", "longest") if (each := getattr(self, name))}
        return {"after": self.after, "ban": self.ban, **more}


class Exempt(Versioned):
    """A user or chat to exempt, or to limit again."""

    id: Annotated[Id, Positional()] = Field(description="The id of a user or a chat.")
    exempt: bool = Field(
        True, description="Limit it instead, even if the bot's configuration exempts it."
    )


class Pause(Versioned):
    """How long all limits stay off."""

    how_long: Annotated[Text, Positional()] = Field(description="For example 30m; a day at most.")


class Rollback(Versioned):
    """The version to return to; by default the previous one."""

    version: Annotated[Number | None, Positional()] = Field(
        None, description="0 drops all changes; by default the previous version."
    )


class Clear(Fields):
    """What to delete."""

    everything: bool = Field(
        False, description="Also delete live limits, history, audit and sessions of the page."
    )
