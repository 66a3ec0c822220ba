"""Carrier and Line: what a batcher needs to know of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


class Line(Protocol):
    """A connection that is ours until it is released."""

    moved: bool
    """Set when the server turns out not to be the one to ask any more."""

    @property
    def spent(self) -> bool:
        """Whether nothing more should go over it."""
        ...

    async def send(self, commands: Sequence[Any]) -> None:
        """Send the commands, without waiting for replies."""
        ...

    async def receive(self, count: int) -> list[Any]:
        """The replies to the next so many commands, in their order."""
        ...

    async def release(self) -> None:
        """Let others have the connection, or close it if replies are still to come."""
        ...


class Carrier(Protocol[Item, Answer]):
    """What a batcher needs to know of the server and its language."""

    @property
    def depth(self) -> int:
        """How many batches may be under way at a time on one line."""
        ...

    def connect(self) -> Awaitable[Line]:
        """A line for some batches."""
        ...

    def weigh(self, item: Item) -> int:
        """How much work an item is for the server."""
        ...

    def pack(self, items: Sequence[Item]) -> Sequence[Any]:
        """The commands that ask about these items."""
        ...

    async def unpack(
        self, line: Line, items: Sequence[Item], replies: Sequence[Any]
    ) -> Sequence[Answer | Exception] | None:
        """An answer to each item; an exception is raised to the one who asked. None: ask again."""
        ...

    def explain(self, error: Exception) -> Exception:
        """The error to raise in place of one that a line raised."""
        ...
