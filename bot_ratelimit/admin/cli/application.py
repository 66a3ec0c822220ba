"""The application: a command for each operation, with its fields as arguments and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from pydantic.fields import FieldInfo

import bot_ratelimit
from bot_ratelimit.admin.cli import terminal, upkeep
from bot_ratelimit.admin.cli.terminal import DEGRADED, NO, fail, run
from bot_ratelimit.admin.fields import Positional, checked, kind_of
from bot_ratelimit.admin.operations import OPERATIONS, Obeyed, Operation
from bot_ratelimit.admin.questions import Question
from bot_ratelimit.admin.wording import ENGLISH
from bot_ratelimit.errors import ConfigError

_DECLARED: Final = {"rules": "--rule", "off": "--off/--on", "exempt": "--not", "id": "ID"}
"""Options whose names are not those of their fields."""
# Ids of chats are negative, and must not be parsed as options. Other unknown options become
# arguments, which `_validated` refuses.
_IDS: Final = {"ignore_unknown_options": True}

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

app = typer.Typer(
    help="Show and change the limits of a running bot; forgive and ban its users. Reads the same "
    "environment and .env as the bot.",
    epilog="Exit status: 0 done; 1 the answer is no; 2 a mistake in the command or configuration; "
    "3 Redis cannot be reached; 4 somebody else changed the limits in the meantime; "
    "5 not confirmed; 6 health says degraded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bot_ratelimit {bot_ratelimit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def _command(operation: Operation) -> Callable[..., None]:
    """A function with the operation's fields as its parameters, as typer reads them."""

    def command(json: bool, yes: bool = False, **given: Any) -> None:
        sent = _validated(operation, given)
        if operation.ask is not None:
            ask = operation.ask
            question: Question = run(lambda control: ask(control, ENGLISH, sent))
            terminal.confirm(question, yes=yes, is_json=json)
            if operation.name == "clear" and not yes:
                upkeep.confirm_prefix()
            if question.version is not None:
                sent = sent.model_copy(update={"if_version": question.version})
        found = run(lambda control: operation.done(control, sent))
        if json:
            value = found.to_json() if isinstance(found, Obeyed) else operation.value(found)
            terminal.print_json(value)
        else:
            terminal.say(terminal.laid_out(operation.sheet(ENGLISH, found)))
            if operation.name == "bans" and len(found) == sent.limit:
                terminal.say([f"There may be more: --offset {sent.offset + sent.limit}"])
        _end(operation, found)

    fields = operation.fields.model_fields.items()
    shared = [("json", upkeep.Json), *([("yes", Yes)] if operation.ask else [])]
    parameters = [_parameter(name, each) for name, each in fields if name != "if_version"]
    parameters += [_keyword(name, kind, False) for name, kind in shared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, default = kind_of(field), field.get_default(call_default_factory=True)
    if any(isinstance(each, Positional) for each in field.metadata):
        how: Any = typer.Argument(help=field.description, metavar=_DECLARED.get(name))
    else:
        declared = [_DECLARED[name]] if name in _DECLARED else []
        is_flag = kind is bool and default is not None and not declared
        flag = f"--{name.replace('_', '-')}"
        how = typer.Option(*([flag] if is_flag else declared), help=field.description)
    if name == "exempt":
        default = False  # as --not
    required = field.is_required()
    kind = list[str] if kind is list else kind
    optional: Any = kind if required or default is not None else kind | None
    return _keyword(
        name, Annotated[optional, how], inspect.Parameter.empty if required else default
    )


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _validated(operation: Operation, given: dict[str, Any]) -> Any:
    if "exempt" in given:
        given["exempt"] = not given["exempt"]
    try:
        for text in given.values():
            if isinstance(text, str) and text.startswith("-"):  # see `_IDS`
                raise ConfigError(f"no such option: {text[:100]}")
        return checked(operation.fields, given)
    except ConfigError as error:
        fail(error)


def _end(operation: Operation, found: Any) -> None:
    """Exit statuses that are answers."""
    if operation.name == "try" and not found.allowed:
        raise typer.Exit(NO)
    if operation.name == "health" and found.status != "healthy":
        raise typer.Exit(NO if found.status == "unhealthy" else DEGRADED)


for _operation in OPERATIONS.values():
    if _operation.show is not None and _operation.name != "by_hour":  # the chart of Telegram
        named = app.command(_operation.name, help=_operation.about, context_settings=_IDS)
        named(_command(_operation))
app.command("watch")(upkeep.watch)
app.command("check")(upkeep.check)
