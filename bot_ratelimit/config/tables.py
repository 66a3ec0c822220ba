"""The tables of limits files and live documents: pydantic models, whose errors are one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Scope, rules_of

FIRST: Final = ("rate_limit", "exempt")
"""What belongs to no table; TOML ends a table only with the next one."""
ABOVE: Final = "write it above the first table of the file"
"""The fix for it."""
MAX_SHOWN: Final = 60
"""How many characters of a value an error shows."""


class Table(BaseModel):
    """A table: no fields but these, and nothing is converted, so `1` is not `true`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


T = TypeVar("T", bound=Table)


def scope_named(value: object) -> Scope:
    """Return the scope with this name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return Scope(value)
    except ValueError:
        scopes = ", ".join(scope.value for scope in Scope)
        raise ConfigError(f"scope={shown(value)}: expected one of {scopes}") from None


def _limit(value: object) -> object:
    Limit.of(value)  # type: ignore[arg-type]  # which raises for what is no limit
    return value


_Scope = Annotated[Scope, BeforeValidator(scope_named)]
_Limit = Annotated[Any, AfterValidator(_limit)]
_TRUE_OR_FALSE: Final = "true or false"


class NamedLimit(Table):
    """A limit that flags find by its name: `ai = { limit = "5/minute", scope = "chat" }`."""

    limit: Any = Field(examples=["5/minute"])
    scope: _Scope = Scope.USER
    cost: int = Field(1, description="a whole number from 1 up")
    shadow: bool = Field(False, description=_TRUE_OR_FALSE)
    on_error: Any = Field(None, description="'allow', 'deny' or 'memory'")

    def given(self) -> dict[str, Any]:
        """Return the fields that are given, checked together.

        Raises:
            ConfigError: They make no rule.
        """
        # `model_dump` would take a Rule apart.
        fields = {name: value for name, value in self if name in self.model_fields_set}
        for rule in rules_of(self.limit):
            Rule(rule.limit, **{name: fields[name] for name in fields if name in _OF_RULES})
        return fields


_OF_RULES: Final = ("cost", "shadow", "on_error")


class RuleTable(NamedLimit):
    """A `[[rules]]` table."""

    limit: Any = Field(examples=["20/minute"])
    name: str = Field("", description="a text")

    def rule(self) -> Rule:
        """Return the rule."""
        return Rule(**self.model_dump(exclude_unset=True))


class PenaltyTable(Table):
    """A `[penalty]` table."""

    after: Any = Field(examples=["10/minute"])
    ban: Any = Field(examples=["15m"])
    grows: bool = Field(False, description=_TRUE_OR_FALSE)
    longest: Any = None
    scope: _Scope = Scope.USER

    def penalty(self) -> Penalty:
        """Return the penalty."""
        fields = self.model_dump(exclude_unset=True)
        return Penalty(fields.pop("after"), fields.pop("ban"), **fields)


class OutgoingTable(Table):
    """An `[outgoing]` table."""

    per_chat: _Limit = None
    per_group: _Limit = None
    broadcast: _Limit = None
    drafts: _Limit = None
    max_wait: float = Field(10.0, ge=0, lt=1e6, description="a number from 0 up")
    retries: int = Field(3, ge=0, lt=1e6, description="a whole number from 0 up")


class Change(Table):
    """What operators changed of one rule; a field that is None was not changed."""

    limit: str | None = Field(None, description="a limit as a text")
    shadow: bool | None = Field(None, description=_TRUE_OR_FALSE)
    off: bool | None = Field(None, description=_TRUE_OR_FALSE)


class LiveDocument(Table):
    """The document of the live changes, but for its format; see `Overrides`."""

    version: int = Field(ge=0, description="a whole number from 0 up")
    at: float
    by: str
    what: str
    rules: dict[str, dict[str, Any]]
    penalty: dict[str, Any] | None
    exempt: list[int]
    limited: list[int]
    off_until: float


def checked(kind: type[T], table: object) -> T:
    """Return the table as a model.

    Raises:
        ConfigError: A field is missing, unknown or wrong; the first such field is named.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{shown(table)}: expected a table, [name] on a line of its own")
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        wrong = _explain(kind, error.errors()[0])
    raise ConfigError(wrong)


def penalty_of(value: object) -> Penalty:
    """Make a penalty of a table with `after`, `ban`, and optionally `grows`, `longest` and `scope`.

    Raises:
        ConfigError: One of them is missing, unknown or invalid.
    """
    return checked(PenaltyTable, value).penalty()


def shown(value: object) -> str:
    """A value for an error, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _explain(kind: type[Table], error: Any) -> str:
    name, value = str(error["loc"][0]), error["input"]
    field = kind.model_fields.get(name)
    if field is None:
        if name in FIRST:
            return f"{name}: {ABOVE}"
        return f"{shown(name)[1:-1]} is unknown; expected {', '.join(kind.model_fields)}"
    if error["type"] == "missing":
        example = f", for example {name} = '{field.examples[0]}'" if field.examples else ""
        return f"{name} is missing{example}"
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, ConfigError):
        return str(reason) if str(reason).startswith(f"{name}=") else f"{name}: {reason}"
    return f"{name}={shown(value)}: expected {field.description or 'another type'}"
