"""Tests that go through a table by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from inspect import iscoroutinefunction
from typing import Any


def table(
    names: str | tuple[str, ...], cases: Iterable[Any]
) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """Like `pytest.mark.parametrize`, but one test, for cases that need no set-up of their own.

    Every case runs. Those that fail are raised together, each with its values.
    """
    rows = [
        dict(zip(names, each, strict=True)) if isinstance(names, tuple) else {names: each}
        for each in cases
    ]

    def decorate(test: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> None:
            for row in _together(rows):
                with row as values:
                    test(**values)

        async def run_async() -> None:
            for row in _together(rows):
                with row as values:
                    await test(**values)

        found: Callable[[], Any] = run_async if iscoroutinefunction(test) else run
        update_wrapper(found, test)
        del found.__wrapped__  # its arguments are no fixtures
        return found

    return decorate


def _together(rows: list[dict[str, Any]]) -> Iterator[Any]:
    errors: list[Exception] = []

    @contextmanager
    def noted(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            yield row
        except Exception as error:
            error.add_note(f"in the case {row!r}")
            errors.append(error)

    yield from map(noted, rows)
    if errors:
        raise ExceptionGroup(f"{len(errors)} cases", errors)
