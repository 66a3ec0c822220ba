"""A storage that keeps fixed windows in a dict; docs/storages.md says what a storage is."""

import time
from collections.abc import Sequence

from bot_ratelimit.storage.base import Ask, Count, Op, Storage, Verdict


class DictStorage(Storage):
    """It never forgets old windows and tokens, as a real one must, and cannot refund."""

    source = "dict"

    def __init__(self) -> None:
        self._windows: dict[str, tuple[int, float]] = {}  # what is used, and when it ends
        self._tokens: dict[str, Sequence[Verdict]] = {}

    async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
        """Answer the question about all counts, or repeat the answer to its token."""
        if ask.once in self._tokens:
            return self._tokens[ask.once]
        verdicts = [self._look(count) for count in ask.counts]
        allowed = all(
            v.wait == 0 for v, c in zip(verdicts, ask.counts, strict=True) if not c.shadow
        )
        if ask.op is Op.RESET:
            for count in ask.counts:
                self._windows.pop(count.key, None)
        elif ask.op is not Op.PEEK and (allowed or ask.op is Op.CHARGE):
            verdicts = [self._charge(v, c) for v, c in zip(verdicts, ask.counts, strict=True)]
        if ask.once is not None:
            self._tokens[ask.once] = verdicts
        return verdicts

    def _look(self, count: Count) -> Verdict:
        used, ends = self._windows.get(count.key, (0, 0.0))
        left = max(0, int((ends - time.monotonic()) * 1e6))
        used = used if left else 0
        remaining = max(0, count.limit.amount - used)
        return Verdict(0 if count.cost <= remaining else left, remaining, left)

    def _charge(self, verdict: Verdict, count: Count) -> Verdict:
        left = verdict.reset or int(count.limit.period * 1e6)
        used = count.limit.amount - verdict.remaining + count.cost
        self._windows[count.key] = used, time.monotonic() + left / 1e6
        return Verdict(verdict.wait, max(0, verdict.remaining - count.cost), left)
