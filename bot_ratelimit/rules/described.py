"""Field documentation of named tuples, where `help()` and editors look for it."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Final, TypeVar

T = TypeVar("T")

_SECTION: Final = re.compile(r"^Attributes:\n((?: .*\n|\n)*)", re.MULTILINE)
_FIELD: Final = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)


def fields_described(cls: type[T]) -> type[T]:
    """Copy the text of each field from the class's `Attributes:` section to the field.

    Without it, `help()` describes them as "Alias for field number 0".
    """
    section = _SECTION.search(cleandoc(cls.__doc__ or "") + "\n")  # none with python -OO
    for name, text in _FIELD.findall(section[1] if section else ""):
        vars(cls)[name].__doc__ = " ".join(text.split())
    return cls
