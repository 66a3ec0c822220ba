"""Names of handlers: in errors, and in the keys of their counts.

A key must be the same on all instances, however each was started. So it has only the last part of
the module's name:

============================  ============  ==========
started with                  `__module__`  in the key
============================  ============  ==========
`python bot.py`               `__main__`    `bot.order`
`python -m shop.bot`          `__main__`    `bot.order`
`import shop.bot`             `shop.bot`    `bot.order`
`python -m shop`              `__main__`    `shop.order`
============================  ============  ==========
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import sha256
from inspect import unwrap
from pathlib import Path
from typing import Any, Final

from aiogram.dispatcher.event.handler import HandlerObject
from aiogram.dispatcher.flags import extract_flags
from aiogram.dispatcher.router import Router
from aiogram.fsm.scene import SceneHandlerWrapper

_MAX_NAME: Final = 200
_FORBIDDEN: Final = re.compile(r"[\s:{}*?\[\]\\\x00-\x1f\x7f]")


def handlers_of(root: Router) -> Iterator[HandlerObject]:
    """Yield all handlers of a bot in the order of registration."""
    for router in root.chain_tail:
        for observer in router.observers.values():
            yield from observer.handlers


def full_name(handler: HandlerObject) -> str:
    """The module and name of a handler, for errors."""
    module, name = _module_and_name(handler)
    return f"{module}.{name}"


class HandlerNames:
    """The names under which the handlers of a bot are counted.

    Handlers may share a name: lambdas, the functions of a factory, functions in modules of the same
    name, and a function that is registered with several limits. They are numbered in the order of
    registration, those with the flag first: a handler without it never changes their names.

    Args:
        flag: The flag that keeps the counts of one function apart, if its values differ.
    """

    def __init__(self, flag: str = "") -> None:
        self._flag = flag
        self._names: dict[int, str] = {}

    def name_of(self, handler: HandlerObject, router: Router | None) -> str:
        """Return the name of a handler."""
        if id(handler) not in self._names and router is not None:
            *_, root = router.chain_head
            flagged = [(each, extract_flags(each)) for each in handlers_of(root)]
            flagged.sort(key=lambda each: self._flag not in each[1])
            self._number((each, flags.get(self._flag)) for each, flags in flagged)
        return self._names.get(id(handler)) or _short_name(handler)

    def _number(self, handlers: Iterable[tuple[HandlerObject, Any]]) -> None:
        known: dict[str, list[Any]] = {}
        for each, flag in handlers:
            same = known.setdefault(_short_name(each), [])
            one = (each.callback, flag)
            if one not in same:
                same.append(one)
            number = same.index(one) + 1
            self._names[id(each)] = _short_name(each) + (f"#{number}" if number > 1 else "")


def shorten_name(name: str) -> str:
    """Return a valid name of a rule; one that is too long is cut and ends with its hash."""
    name = _FORBIDDEN.sub("_", name)
    if len(name) <= _MAX_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _MAX_NAME - 17]}~{digest}"


def _short_name(handler: HandlerObject) -> str:
    module, name = _module_and_name(handler)
    if module == "__main__":
        module = _main_module()
    return f"{module.removesuffix('.__main__').rpartition('.')[2]}.{name}"


def _main_module() -> str:
    """What `__main__` would be called if it were imported."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m
        return str(spec.name)
    path = Path(getattr(main, "__file__", None) or "__main__").resolve()
    return path.parent.name if path.stem == "__main__" else path.stem


def _module_and_name(handler: HandlerObject) -> tuple[str, str]:
    callback = _innermost_function(handler)
    kind = type(callback)
    module = getattr(callback, "__module__", kind.__module__)
    return str(module), str(getattr(callback, "__qualname__", kind.__qualname__))


def _innermost_function(handler: HandlerObject) -> Any:
    callback: Any = handler.callback
    if isinstance(callback, SceneHandlerWrapper):
        callback = callback.handler.callback
    callback = unwrap(callback)
    while isinstance(callback, partial):
        callback = callback.func
    return callback
