"""Rule, Scope and Subject: which key counts which subject."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_ratelimit import ConfigError, Limit, Penalty, Rule, Scope, Subject
from bot_ratelimit.rules.checks import check_prefix
from bot_ratelimit.rules.rule import Rules, notice_rule, rules_of
from tests.tables import table

ANNA = Subject(user=42, chat=-100, topic=7)


def firm(subject: Subject) -> str | None:
    """A custom scope: odd users work for the same firm, even ones for none."""
    return "acme" if subject.user and subject.user % 2 else None


@table(
    ("rule", "key", "label"),
    [
        (Rule("1/s"), "42", "user"),
        (Rule("5/m", name="ai"), "ai:42", "ai"),
        (Rule("20/m", Scope.CHAT), "chat:-100", "chat"),
        (Rule("1/s", Scope.MEMBER), "member:-100:42", "member"),
        (Rule("1/s", Scope.TOPIC), "topic:-100:7", "topic"),
        (Rule("1000/s", Scope.GLOBAL), "global", "global"),
        (Rule("20/m", Scope.CHAT, "slow"), "slow:chat:-100", "slow:chat"),
        (Rule("1000/s", Scope.GLOBAL, "ai"), "ai:global", "ai:global"),
        (Rule("9/h", lambda s: "acme", name="firm"), "firm:custom:acme", "firm:custom"),
        (Rule("5/m sliding"), "sliding:42", "user"),
        (Rule("5/m bucket", Scope.CHAT, "ai"), "bucket:ai:chat:-100", "ai:chat"),
        (Rule(lambda s: "5/m burst 9"), "bucket:42", "user"),
        (Rule("5/day in UTC"), "42", "user"),
        (Penalty("10/m", "15m"), "ban:42", "ban"),
        (Penalty("10/m", "15m", scope=Scope.MEMBER), "ban:member:-100:42", "ban:member"),
    ],
)
def test_the_table_of_keys(rule: Rule, key: str, label: str) -> None:
    """Counts are under the documented keys; metrics and logs name what stands before the ids."""
    assert rule.key("bot", ANNA) == f"bot:ratelimit:{key}"
    assert rule.label == label


def test_the_key_of_the_contract() -> None:
    """The key of `RateLimitMiddleware(1.0, client, "booking_bot:client1")` is as promised. Several
    bots with one prefix, and business chats, have separate keys."""
    key = Rule(1.0).key("booking_bot:client1", Subject(user=123456789))
    assert key == "booking_bot:client1:ratelimit:123456789"
    for bot, business, realm in (
        (1, None, "bot:1"),
        (None, "Bc_9-", "business:Bc_9-"),
        (1, "Bc", "bot:1:business:Bc"),
    ):
        key = Rule("5/m", Scope.CHAT, "ai").key("bot", ANNA._replace(bot=bot, business=business))
        assert key == f"bot:ratelimit:{realm}:ai:chat:-100"


@table(
    ("scope", "subject"),
    [
        (Scope.USER, Subject(chat=-100, topic=7)),
        (Scope.CHAT, Subject(user=42)),
        (Scope.MEMBER, Subject(user=42)),
        (Scope.MEMBER, Subject(chat=-100)),
        (Scope.TOPIC, Subject(user=42, chat=-100)),
        (Scope.TOPIC, Subject(topic=7)),
        (firm, Subject(user=42)),
    ],
)
def test_a_scope_without_its_id_does_not_apply(scope: Any, subject: Subject) -> None:
    """A rule without its id counts nothing; only the global scope needs none."""
    assert Rule("1/s", scope, "a").key("bot", subject) is None
    assert Rule("1/s", Scope.GLOBAL).key("bot", Subject()) == "bot:ratelimit:global"


OURS = "chat member topic global custom once ban bot business notice sliding bucket slot stats user"
NOWHERE = ("a b", "a*", "a?", "a[b", "a]", "a\\b", "a\n", "\x00", "\x7f", None, 5)


def test_an_ambiguous_name_or_prefix_is_refused() -> None:
    """What could be part of another key, such as a word of the package's own, or a pattern. Others
    are in the key as they are, in any alphabet, and a prefix may have a hash tag of a cluster."""
    for prefix, name in (("booking_bot:c", "5/10s-sliding"), ("{bot}", "42"), ("бот", "отчёт")):
        assert check_prefix(prefix) == prefix
        assert Rule("1/s", name=name).key(prefix, ANNA) == f"{prefix}:ratelimit:{name}:42"
    assert check_prefix("x" * 128)
    assert Rule("1/s", name="x" * 200)
    for name in (*NOWHERE, "x" * 201, "a:b", "{a", "a}", 0, b"ai", *OURS.split()):
        with pytest.raises(ConfigError) as error:
            Rule("1/s", name=name)  # type: ignore[arg-type]  # tested
        assert str(error.value).startswith(f"name={name!r}: ")
    with pytest.raises(ConfigError, match=r"^key_prefix=a URL: "):
        check_prefix("redis://:secret@host/0")
    for prefix in (*NOWHERE, "", "x" * 129):
        with pytest.raises(ConfigError, match="for example 'booking_bot:client1'") as error:
            check_prefix(prefix)
        assert str(error.value).startswith(f"key_prefix={prefix!r}: ")


def test_a_scope_and_a_policy_may_be_text() -> None:
    """The texts that flags accept are accepted by a rule; rules that differ in them differ."""
    for scope in Scope:
        assert Rule("1/s", scope.value) == Rule("1/s", scope)
    assert Penalty("10/m", "15m", scope="chat") == Penalty("10/m", "15m", scope=Scope.CHAT)
    for on_error in ("allow", "deny", "memory"):
        rule = Rule("1/s", on_error=on_error)  # type: ignore[arg-type]  # one of three
        assert rule.on_error == on_error
        assert rule != Rule("1/s")


class AsyncLimit:
    async def __call__(self, subject: Subject) -> str:
        return "1/s"


async def async_scope(subject: Subject) -> str:
    return "acme"


SCOPES = r"^scope=.*('user', 'chat'|Scope\.USER)"
POLICIES = r"^on_error=.*'allow', 'deny' or 'memory'"
NOT_ASYNC = "=.*expected a function that is not async"


@table(
    ("arguments", "says"),
    [
        *(({"scope": scope}, SCOPES) for scope in ("chats", "USER", "", None, 5)),
        *(({"on_error": policy}, POLICIES) for policy in ("raise", True, 0, "")),
        *(({"cost": cost}, "^cost=") for cost in (0, -1, 1.0, "1", None, True)),
        *(({"limit": firm, "cost": cost}, "^cost=") for cost in (0, 1.0, True)),
        ({"scope": firm}, "needs a name"),
        ({"shadow": 1}, "shadow=1: expected True or False"),
        ({"after": "10/m sliding"}, "after='10/minute sliding'"),
        ({"ban": 0}, "ban=0"),
        ({"ban": "long"}, "ban='long': expected seconds"),
        ({"ban": 60, "grows": 1}, "grows=1: expected True or False"),
        ({"ban": "15m", "grows": True, "longest": "10m"}, "longest='10m'"),
        ({"ban": 60, "longest": "1h"}, "longest='1h': set grows to true"),
        ({"ban": 60, "scope": "users"}, "scope='users': expected one of 'user'"),
        ({"ban": 60, "scope": lambda subject: "a"}, "expected a Scope"),
        *(({"limit": each}, f"^limit{NOT_ASYNC}") for each in (async_scope, AsyncLimit())),
        *(
            ({"scope": each, "name": "firm"}, f"^scope{NOT_ASYNC}")
            for each in (async_scope, AsyncLimit())
        ),
    ],
)
def test_a_wrong_argument_is_named_when_the_rule_is_made(
    arguments: dict[str, Any], says: str
) -> None:
    """Not at the first update; the error shows the value and what is expected."""
    make: type[Rule] = Rule if arguments.keys().isdisjoint(("after", "ban")) else Penalty
    others = {"limit": "5/s"} if make is Rule else {"after": "10/m", "ban": "15m"}
    with pytest.raises(ConfigError, match=says):
        make(**others | arguments)


def test_an_id_is_no_object() -> None:
    """A custom scope returns a str: anything else would be another key for every hit. A user object
    in place of its id is an error that shows nothing of the user."""
    for answer in (object(), b"acme"):
        scope: Any = lambda _, answer=answer: answer  # noqa: E731 - short
        with pytest.raises(ConfigError, match=r"is not an id for .*'firm'.*not async"):
            Rule("1/s", scope, "firm").key("bot", ANNA)
    user: Any = SimpleNamespace(id=42, first_name="Anna")
    for scope in (Scope.USER, Scope.MEMBER):
        with pytest.raises(ConfigError, match=r"^SimpleNamespace is not an id for .*from_user\.id"):
            Rule("1/s", scope).key("bot", Subject(user=user, chat=-100))


@table(("limit", "highest"), [("5/s sliding", 5), ("5/s burst 9", 9), ("5/s burst 2", 2)])
def test_a_cost_that_is_never_granted_is_refused(limit: str, highest: int) -> None:
    """A rule that would always refuse is a ConfigError that names it."""
    assert Rule(limit, cost=highest).cost == highest
    with pytest.raises(ConfigError, match=f"never grants more than {highest}") as error:
        Rule(limit, name="ai", cost=highest + 1)
    assert f"{limit} per user 'ai'" in str(error.value)


@table("answer", ["9/h", 2.0, Limit(9, 3_600), None])
def test_a_limit_may_depend_on_the_subject(answer: Any) -> None:
    """A callable limit may return everything that is a valid limit, or None."""
    rule = Rule(lambda subject: answer if subject == ANNA else "1/s")
    assert rule.limit_for(ANNA) == (None if answer is None else Limit.of(answer))
    assert rule.limit_for(Subject(user=43)) == Limit(1, 1)
    assert str(rule) == "limit by test_a_limit_may_depend_on_the_subject.<locals>.<lambda> per user"


A, B = Limit(1, 1), Limit(20, 60)


@table(
    ("value", "rules"),
    [
        (1.0, [Rule(A)]),
        ("20/minute", [Rule(B)]),
        (B, [Rule(B)]),
        (Rule(B, Scope.CHAT), [Rule(B, Scope.CHAT)]),
        ("1/s; 20/minute", [Rule(A), Rule(B, name="20/minute")]),
        ("1/s;20/60s sliding", [Rule(A), Rule("20/m sliding", name="20/minute-sliding")]),
        ([Rule(A), Rule(B)], [Rule(A), Rule(B, name="20/minute")]),
        ([Rule(A), Rule(B, cost=2, shadow=True)], [Rule(A), Rule(B, "user", "20/minute", 2, True)]),
        (["1/s", Rule(B, name="slow")], [Rule(A), Rule(B, name="slow")]),
        (iter([1.0, Rule("20/m", Scope.CHAT)]), [Rule(A), Rule(B, Scope.CHAT)]),
    ],
)
def test_rules_of_every_form(value: Any, rules: list[Rule]) -> None:
    """Numbers, texts, limits, rules and several of them become rules."""
    found = rules_of(value)
    assert list(found) == rules
    assert rules_of(found) is found
    assert rules_of("7/3s; 70/hour") is rules_of("7/3s; 70/hour")  # parsed once


class Redis:
    """Stands for a client, which no test of rules needs."""

    connection_pool = "with a password"


@table(
    ("value", "says"),
    [
        *((value, "") for value in (None, True, b"5", {}, [], "", [None], [True], [["1/s"]])),
        *((text, "'': expected AMOUNT/PERIOD") for text in ("1/s;", ";1/s", ";")),
        ("1/s; fast", "'fast'"),
        ((5, 10), "(5, 10): several numbers; for 5 events in 10 seconds write '5/10s'"),
        (ANNA, "a Subject stands where the limit belongs: expected the limit first"),
        (Redis(), "a Redis stands where the limit belongs: expected the limit first"),
        ("5/s, 20/m", "with ';' between several"),
        ("redis://:with a password;x@host/0", "a URL or a client comes after the limit"),
    ],
)
def test_a_wrong_rule_is_explained(value: Any, says: str) -> None:
    """One line says what was meant or gives an example, and shows nothing of a client."""
    with pytest.raises(ConfigError, match=r"for example|such as|write|expected|give") as error:
        rules_of(value)
    assert says in str(error.value)
    assert "password" not in str(error.value)
    assert "password" not in str(error.value)


@table(
    ("value", "one", "other"),
    [
        ("1/s; 2/s; 2/1s", "2/s per user '2/s'", "2/s per user '2/s'"),
        ([Rule("1/s", name="a"), Rule("2/s", name="a")], "1/s per user 'a'", "2/s per user 'a'"),
        ([Rule(1, firm, "f"), Rule(2, str, "f")], "1/s per custom 'f'", "1/2s per custom 'f'"),
    ],
)
def test_rules_that_would_share_a_key_are_named(value: Any, one: str, other: str) -> None:
    """Two rules with one key are an error that names both and the fix."""
    with pytest.raises(ConfigError, match=r"would share a key; .* a name") as error:
        rules_of(value)
    assert f"'{one}' and '{other}'" in str(error.value).replace('"', "'")


NAMES = st.sampled_from(["", "a", "b", "42", "-100", "custom-x", "globals", "bans", "20/minute"])
WORDS = st.sampled_from(
    ["", "42", "a", "global", "a:42", "chat:-100", "custom:x", "sliding:42", "a:custom:x"]
)
IDS = st.none() | st.sampled_from([1, 42, -100])
SUBJECTS = st.builds(Subject, IDS, IDS, IDS, IDS, st.none() | st.sampled_from(["Bc_9-", "42"]))


def saying(word: str) -> Callable[[Subject], str]:
    return lambda subject: word


@st.composite
def rule_sets(draw: st.DrawFn) -> Rules:
    """Rules that may be decided together, with the most confusing names."""
    scopes = st.sampled_from(Scope)
    rules = st.one_of(
        st.builds(Rule, st.sampled_from(["1/s", "1/s bucket", "1/s sliding"]), scopes, NAMES),
        st.builds(Rule, st.just("1/s"), WORDS.map(saying), NAMES.filter(bool)),
        st.builds(Penalty, st.just("1/s"), st.just(60), scope=scopes),
    )
    return rules_of(draw(st.lists(rules, min_size=2, max_size=8, unique_by=lambda r: r.path)))


@given(rule_sets(), SUBJECTS, SUBJECTS)
def test_rules_of_one_set_never_share_a_key(rules: Rules, one: Subject, other: Subject) -> None:
    """Whatever their names, scopes and subjects, two rules never have the same key."""
    for first, second in combinations(rules, 2):
        keys = {first.key("bot", one), first.key("bot", other)} - {None}
        assert keys.isdisjoint({second.key("bot", one), second.key("bot", other)})
        assert all(str(key).startswith("bot:ratelimit:") for key in keys)


def test_notices_of_very_long_waits() -> None:
    """A bucket may have a wait of years; its notice rule is cut to a valid limit."""
    assert notice_rule(5 * 366 * 86_400, Scope.USER).limit == Limit(1, 366 * 86_400)
