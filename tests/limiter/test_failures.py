"""Failures: log messages about failing servers and the servers that replace them."""

from __future__ import annotations

import pytest

from bot_ratelimit.errors import ConfigError, NotConnectedError, StorageError
from bot_ratelimit.limiter.failures import Failures
from tests.benches import charge

CHARGES = [charge("9/m", "7")]


class Where:
    """Which server decides now."""

    server = "a:1"

    def __call__(self, charges: object) -> str:
        return self.server


def fail(failures: Failures, server: str, error: StorageError) -> None:
    breaker = failures.breaker(server)
    ticket = breaker.admit(0.0)
    assert ticket is not None
    failures.failed(server, breaker, ticket, error, CHARGES)


def succeed(failures: Failures, server: str) -> None:
    breaker = failures.breaker(server)
    ticket = breaker.admit(9.0)
    assert ticket is not None
    failures.succeeded(server, breaker, ticket)


def test_a_replaced_server_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If another server takes over from a failed one, the log says so once."""
    where = Where()
    failures = Failures("allow", lambda: 1.0, where)
    fail(failures, "a:1", NotConnectedError("Connection refused"))
    succeed(failures, "b:2")  # which has other slots
    assert len(caplog.messages) == 1
    where.server = "b:2"
    succeed(failures, "b:2")
    succeed(failures, "b:2")
    assert caplog.messages[1:] == [
        "Redis answers again after 0.0 s: limits hold on every instance (b:2, asked instead of a:1)"
    ]


def test_an_error_reply_does_not_end_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The recovery is logged after a decision, not after an error reply."""
    failures = Failures("allow", lambda: 1.0, Where())
    fail(failures, "a:1", StorageError("no answer"))
    breaker = failures.breaker("a:1")
    failures.rejected("a:1", breaker, breaker.admit(0.0) or 0, ConfigError("NOPERM"))
    assert "answers again" not in caplog.text
    succeed(failures, "a:1")
    assert "answers again" in caplog.text


def test_each_outage_that_ends_has_a_line_at_its_beginning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two outages of one kind within a minute are four lines; updates during one add none."""
    failures = Failures("allow", lambda: 1.0, Where())
    for _ in range(2):
        caplog.clear()
        for _ in range(3):
            fail(failures, "a:1", NotConnectedError("Connection refused", kind="refused"))
        succeed(failures, "a:1")
        began, ended = caplog.messages
        assert began.startswith("Redis rate limit check failed: Connection refused. ")
        assert ended.startswith("Redis answers again after ")


def test_single_late_answers_are_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that is late now and then, which is no outage, does not fill the log."""
    failures = Failures("allow", lambda: 1.0, Where())
    for _ in range(5):
        fail(failures, "a:1", StorageError("no answer", kind="timeout"))
        succeed(failures, "a:1")
    assert len(caplog.messages) == 2
