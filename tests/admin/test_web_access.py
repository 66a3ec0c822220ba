"""Who may use admin_app: tokens, sessions, Mini Apps; attacked over real HTTP."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from pydantic import SecretStr

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    RateLimitMiddleware,
    RedisStorage,
    Settings,
)
from bot_ratelimit.admin import admin_app
from bot_ratelimit.storage.base import Storage

from .web import ANNA, BORIS, BOT_TOKEN, PAGE, TOKEN, Site, Visitor, bot_on, init_data, site

pytestmark = pytest.mark.usefixtures("environment")

CHANGES = [
    ("POST", "api/users/42/forgive", {}),
    ("PUT", "api/bans/42", {"how_long": "1h"}),
    ("DELETE", "api/bans/42", None),
    ("PATCH", "api/limits/messages", {"limit": "2/minute"}),
    ("POST", "api/preview", {"name": "messages", "limit": "2/minute"}),
    ("POST", "api/rollback", {}),
    ("POST", "api/pause", {"how_long": "1h"}),
    ("POST", "api/resume", {}),
    ("POST", "api/exempt", {"id": 42}),
    ("POST", "api/penalty", {"after": "10/minute"}),
    ("POST", "logout", None),
]


@pytest.fixture
async def admin_site(storage: Storage) -> AsyncIterator[Site]:
    """A bot that serves admin_app under a path, on memory and on a real Redis."""
    async with site(bot_on(storage)) as found:
        yield found


async def changed(admin_site: Site) -> list[Any]:
    """The actions in the audit."""
    async with admin_site.script() as script:
        return (await script.get("api/audit")).content


def test_without_anybody_who_may_it_refuses_to_start(environment: pytest.MonkeyPatch) -> None:
    """Without any way to log in, or with a token that can be guessed, the bot does not start.

    The error does not show the token. Each wrong argument is one error, with the fix.
    """
    middleware = RateLimitMiddleware()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "nobody would have access: set RATE_LIMIT_ADMIN_TOKEN"),
        ({"admins": [42]}, "pass bot_token= too"),
        ({"admins": [42], "bot_token": "YOUR_TOKEN"}, "bot_token: expected the bot's token"),
        ({"admins": [42], "bot_token": SecretStr(BOT_TOKEN)}, "bot_token: expected"),
        ({"admins": None, "bot_token": BOT_TOKEN}, "expected ids of users"),
        ({"admins": [[42]], "bot_token": BOT_TOKEN}, "[42] is not the id of a user"),
        ({"token": TOKEN, "trusted_proxies": None}, "trusted_proxies=None: expected a list"),
        ({"token": TOKEN, "trusted_proxies": [1]}, "trusted_proxies: '1' does not"),
        ({"middleware": MemoryStorage(), "token": TOKEN}, "middleware is a MemoryStorage"),
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            admin_app(**{"middleware": middleware} | options)
        assert "YOUR_TOKEN" not in str(caught.value)
    for token in ("", "fifteen-letters", "aaaaaaaaaaaaaaaaaaaaaa", "with spaces in the middle"):
        environment.setenv("RATE_LIMIT_ADMIN_TOKEN", token or "x")
        for argument in (token, None):
            with pytest.raises(ConfigError, match=r"RATE_LIMIT_ADMIN_TOKEN.*16 to 512") as caught:
                admin_app(middleware, token=argument)
            assert not token or token not in str(caught.value)


@pytest.mark.parametrize("root", ["/", "/ops/admin/"])
async def test_a_browser_is_led_from_the_form_to_the_page(root: str) -> None:
    """On a separate port or under a path, with relative links, which work behind any proxy."""
    async with site(bot_on(MemoryStorage()), root) as found, found.visitor(**PAGE) as visitor:
        for path, status in (("", 200), ("users/42", 401)):
            reply = await visitor.get(path)
            assert (reply.status, 'name="token"' in reply.text) == (status, True)
        reply = await visitor.log_in(token="wrong")
        assert (reply.status, 'name="token"' in reply.text) == (401, True)
        reply = await visitor.log_in(token=TOKEN)
        assert (reply.status, reply.headers["Location"]) == (303, "./")
        reply = await visitor.get("")
        for said in ("Log out", "token@web", 'href="./static/console.css'):
            assert said in reply.text
        if root != "/":  # the folder is found without its slash
            url = found.server.make_url("/ops/admin")
            async with visitor.session.get(url, allow_redirects=False) as response:
                assert (response.status, response.headers["Location"]) == (308, "admin/")


async def test_only_what_is_configured_opens_the_page(environment: pytest.MonkeyPatch) -> None:
    """RATE_LIMIT_ADMIN_TOKEN is the token; an argument wins over it; no repr shows either.

    With a token alone, the page is not a Mini App; with admins alone, it takes no token.
    """
    bot, other = bot_on(MemoryStorage()), "from-the-environment-1"
    async with site(bot, token=None) as found:
        for token in ("", "None", TOKEN, BOT_TOKEN):
            async with found.visitor(Authorization=f"Bearer {token}") as visitor:
                assert (await visitor.get("api/limits")).status == 401
        async with found.visitor() as anna:
            assert (await anna.log_in(init_data=init_data())).status == 200
    environment.setenv("RATE_LIMIT_ADMIN_TOKEN", other)
    assert other not in repr(Settings())
    for argument, right, wrong in ((None, other, TOKEN), (TOKEN, TOKEN, other)):
        async with site(bot, token=argument, admins=()) as found, found.visitor() as visitor:
            assert (await visitor.log_in(token=right)).status == 200
            assert (await visitor.log_in(token=wrong)).status == 401
            assert (await visitor.log_in(init_data=init_data())).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"X-Token": TOKEN},
    ],
    ids=lambda headers: " ".join(headers.values())[:20] or "none",
)
async def test_strangers_are_refused_everywhere_and_change_nothing(
    admin_site: Site, headers: dict[str, str]
) -> None:
    """Without the right token every path answers 401, and 429 after too many guesses."""
    async with admin_site.visitor(**headers) as visitor:
        for method, path, sent in CHANGES:
            reply = await visitor.ask(method, path, json=sent)
            assert reply.status in {401, 429}
            assert reply.headers["Content-Type"].startswith("application/problem+json")
            assert TOKEN not in reply.text
    async with admin_site.visitor() as visitor:
        assert (await visitor.get(f"api/audit?token={TOKEN}")).status == 401
        two = [("Authorization", f"Bearer {each}") for each in (TOKEN, "other")]
        assert (await visitor.get("api/audit", headers=two)).status in {400, 401, 429}
        await visitor.log_in()
        if visitor.csrf:  # else this address is slowed
            assert (await visitor.get("api/audit")).content == []


async def test_a_stranger_cannot_map_the_site(found: Site) -> None:
    """Without access, existing and missing paths give the same answer.

    Its headers forbid foreign scripts and frames, type sniffing and caching. Only Telegram's web
    clients may show the page in a frame, if it is a Mini App.
    """
    async with found.visitor() as stranger, found.script() as script:
        for method in ("GET", "POST", "PUT", "OPTIONS", "TRACE"):
            reply = await stranger.ask(method, "api/limits")
            missing = await stranger.ask(method, "api/nothing/here", headers=PAGE)
            assert (reply.status, reply.text) == (missing.status, missing.text)
            assert "Allow" not in reply.headers
            assert reply.headers["WWW-Authenticate"].startswith("Bearer")
            title, detail = "Unauthorized", "send the token, or log in"
            problem = {"type": "about:blank", "title": title, "status": 401, "detail": detail}
            assert reply.content == problem
        missing = await script.get("api/nothing/here")
        assert (missing.status, missing.content["title"]) == (404, "Not Found")
        for method in ("POST", "OPTIONS"):
            wrong = await script.ask(method, "api/limits")
            assert (wrong.status, wrong.headers["Allow"]) == (405, "GET,HEAD")
        for path in ("", "users/42", "api/limits", "api/nothing", "login"):
            for visitor in (stranger, script):
                reply = await visitor.ask("HEAD", path)
                policy = reply.headers["Content-Security-Policy"]
                assert (reply.text, "default-src 'none'" in policy) == ("", True)
                assert "unsafe" not in policy
                assert "frame-ancestors https://web.telegram.org" in policy
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
                assert reply.headers["Referrer-Policy"] == "same-origin"
                assert reply.headers["Cache-Control"] == "no-store"
                assert "Access-Control-Allow-Origin" not in reply.headers
    async with site(bot_on(MemoryStorage()), admins=()) as alone, alone.visitor() as stranger:
        headers = (await stranger.get("")).headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"


async def test_a_login_opens_a_session_and_a_logout_ends_it_everywhere(admin_site: Site) -> None:
    """The cookie is HttpOnly and SameSite=Strict; after logout a copy of it is refused.

    A cookie with any other id opens nothing, and neither does that of a known browser.
    """
    async with admin_site.visitor() as visitor, admin_site.visitor() as thief:
        reply = await visitor.log_in()
        assert (reply.status, reply.content["by"]) == (200, "token@web")
        for each in reply.cookies:
            assert "HttpOnly" in each
            assert "SameSite=Strict" in each
            assert "Secure" not in each  # this is HTTP
            assert TOKEN not in each
        name, cookie = next(each for each in visitor.cookies().items() if "_device" not in each[0])
        device = visitor.cookies()[f"{name}_device"]
        for value in (cookie[:-1], cookie[::-1], device, "A" * 43, "' OR 1=1 --", "9" * 5_000):
            async with admin_site.visitor(Cookie=f"{name}={value}") as forger:
                assert (await forger.get("api/limits")).status == 401, value
        thief.steal(visitor)
        for each in (visitor, thief):
            assert (await each.get("api/limits")).status == 200
        assert (await visitor.change("POST", "logout")).status == 303
        for each in (visitor, thief):
            assert (await each.get("api/limits")).status == 401
        # Another process of the bot knows, too; on memory there is no other.
        if isinstance(admin_site.middleware.limiter.storage, RedisStorage):
            async with site(admin_site.middleware) as other, other.visitor() as elsewhere:
                elsewhere.steal(thief)
                assert (await elsewhere.get("api/limits")).status == 401


async def test_a_cookie_is_secure_where_the_browser_uses_https(found: Site) -> None:
    """Behind a TLS proxy, Origin makes cookies Secure; Telegram's frame needs SameSite=None.

    Headers of a trusted proxy say that the browser uses HTTPS; those of others say nothing.
    """
    origin = {"Origin": f"https://{found.server.host}:{found.server.port}"}
    async with found.visitor(**origin) as visitor:
        for cookie in (await visitor.log_in()).cookies:
            assert cookie.endswith("SameSite=Strict; Secure")
        (cookie,) = (await visitor.log_in(init_data=init_data())).cookies
        assert cookie.endswith("SameSite=None; Partitioned; Secure")
        assert "Max-Age=3600" in cookie
    # The nearest proxy's word is the last one.
    for proto, is_https in (("HTTPS", True), ("http, https", True), ("https, http", False)):
        for proxies in (["127.0.0.1"], []):
            async with (
                site(bot_on(MemoryStorage()), trusted_proxies=proxies) as behind,
                behind.visitor(**{"X-Forwarded-Proto": proto}) as visitor,
            ):
                secure = [c.endswith("; Secure") for c in (await visitor.log_in()).cookies]
                assert secure == [is_https and bool(proxies)] * 2


async def test_a_session_ends_in_time(found: Site) -> None:
    """A session lasts twelve hours by token, one hour in Telegram; then requests get 401."""
    for fields, seconds in (({"token": TOKEN}, 12 * 3_600), ({"init_data": init_data()}, 3_600)):
        async with found.visitor() as visitor:
            found.now.ahead = 0
            assert (await visitor.log_in(**fields)).status == 200
            found.now.ahead = seconds - 5
            assert (await visitor.get("api/limits")).status == 200
            found.now.ahead = seconds + 1
            assert (await visitor.get("api/limits")).status == 401
            for method, path, sent in CHANGES:
                assert (await visitor.change(method, path, sent)).status == 401
    found.now.ahead = 0
    assert await changed(found) == []


async def test_another_token_ends_all_sessions() -> None:
    """Another token, another prefix, or no admin any more: the session is not found."""
    middleware = bot_on(MemoryStorage())
    limiter = Limiter(MemoryStorage(), key_prefix="another_bot")
    others: list[tuple[RateLimitMiddleware, dict[str, Any]]] = [
        (middleware, {"token": "another-token-0123456789"}),
        (middleware, {"bot_token": "42:ANOTHER"}),
        (RateLimitMiddleware(limiter=limiter), {}),
    ]
    async with site(middleware) as before, before.visitor() as visitor:
        await visitor.log_in(init_data=init_data())
        ((name, cookie),) = visitor.cookies().items()
        for admins, status in (([ANNA, BORIS], 200), ([7], 401)):
            async with (
                site(middleware, admins=admins) as again,
                again.visitor(Cookie=f"{name}={cookie}") as same,
            ):
                assert (await same.get("api/limits")).status == status
        for bot, options in others:
            async with site(bot, **options) as after, after.visitor() as other:
                await other.log_in(init_data=init_data(token=options.get("bot_token", BOT_TOKEN)))
                (its_name,) = other.cookies()
                other.set_cookie(its_name, cookie)
                assert (await other.get("api/limits")).status == 401


async def test_a_change_needs_the_csrf_token_of_its_session(found: Site) -> None:
    """A CSRF token that is missing, wrong, doubled or of another session gets 403.

    A bearer token needs none, because no browser adds it by itself.
    """
    async with found.visitor() as anna, found.visitor() as ben, found.script() as script:
        await anna.log_in()
        await ben.log_in()
        assert anna.csrf != ben.csrf
        anna.csrf, right = "", anna.csrf
        for method, path, sent in CHANGES:
            assert (await anna.change(method, path, sent)).status == 403
            for wrong in ("", "x", ben.csrf, right[:-1], right + "x", "ü" * 43):
                reply = await anna.change(method, path, sent, **{"X-CSRF-Token": wrong})
                assert (reply.status, reply.content["title"]) == (403, "Forbidden")
        for fields in ([], [("csrf", ben.csrf)], [("csrf", right), ("csrf", right)]):
            assert (await anna.ask("POST", "logout", data=fields)).status == 403
        assert await changed(found) == []
        assert (await anna.ask("POST", "logout", data={"csrf": right})).status == 303
        assert (await script.change("POST", "api/exempt", {"id": 42})).status == 200
    (entry,) = await changed(found)
    assert (entry["by"], entry["what"]) == ("token@web", "exempt 42")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"X-Forwarded-Host": "evil.example", "Origin": "https://evil.example"},
    ],
)
async def test_a_page_of_another_site_changes_nothing(found: Site, headers: dict[str, str]) -> None:
    """Another site gets 403 even with the CSRF token, and uses up no attempts of its visitor."""
    async with found.visitor() as anna:
        await anna.log_in()
        for method, path, sent in CHANGES:
            assert (await anna.change(method, path, sent, **headers)).status == 403
        for _ in range(10):
            reply = await anna.ask("POST", "login", data={"token": "wrong"}, headers=headers)
            assert reply.status == 403
        assert await changed(found) == []
        assert (await anna.log_in(token="wrong")).status == 401
        own = {"Sec-Fetch-Site": "same-origin"}
        assert (await anna.change("POST", "api/exempt", {"id": 42}, **own)).status == 200
    # Without Host nothing says what the browser calls this server; the system is not asked.
    reader, writer = await asyncio.open_connection(found.server.host, found.server.port)
    writer.write(
        b"POST /ops/admin/login HTTP/1.0\r\nOrigin: http://127.0.0.1\r\nContent-Length: 7\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\ntoken=x"
    )
    assert (await reader.readline()).split()[1] == b"403"
    writer.close()


async def test_an_admin_enters_from_telegram(admin_site: Site) -> None:
    """Signed initData opens a session in the name of its user, once."""
    data = init_data()
    async with admin_site.visitor() as anna:
        reply = await anna.log_in(init_data=data)
        assert (reply.status, reply.content["by"]) == (200, f"{ANNA}@web")
        assert (await anna.change("POST", "api/exempt", {"id": 42})).status == 200
    ((entry),) = await changed(admin_site)
    assert entry["by"] == f"{ANNA}@web"
    async with admin_site.visitor() as thief:
        for replayed in (data, urlencode(sorted(parse_qsl(data), reverse=True))):
            reply = await thief.log_in(init_data=replayed)
            assert (reply.status, "was used" in reply.text) == (401, True)


def forged() -> dict[str, tuple[str, int]]:
    """Wrong initData, with the status of the answer."""
    right, now = init_data(), time.time()
    by_name = dict(parse_qsl(right))
    admin = by_name["user"]
    wrong = {
        "empty": "",
        "no query": "hello",
        "no hash": urlencode({"auth_date": "1", "user": admin}),
        "wrong hash": urlencode({**by_name, "hash": "0" * 64}),
        "hash of other letters": urlencode({**by_name, "hash": "ü" * 64}),
        "unsigned field": urlencode({**by_name, "chat_type": "private"}),
        "another user": urlencode({**dict(parse_qsl(init_data(7))), "user": admin}),
        "another bot": init_data(token="43:ANOTHER-BOT"),
        "old": init_data(at=now - 301),
        "of the future": init_data(at=now + 60),
        "of the far future": init_data(at=10**17),
        "before time": init_data(at=-1),
        "a field twice": right + "&query_id=AAF",
        "user twice": f"{init_data(7)}&{urlencode({'user': admin})}",
        "hash twice": right + "&hash=" + "0" * 64,
        "long": init_data(more="x" * 9_000),
    }
    unknown = {"no user": (init_data(None), 403), "no admin": (init_data(7), 403)}
    return {how: (data, 401) for how, data in wrong.items()} | unknown


CLOCKS = {
    "old": "is too old: open the page again",
    "of the future": "is from the future: set this server's clock",
}


@pytest.mark.parametrize("how", forged())
async def test_init_data_that_is_not_right_opens_nothing(
    found: Site, how: str, visitor: Visitor
) -> None:
    """initData that is forged, old, of another bot or of no admin gets 401 or 403, no cookie.

    If only a clock is wrong, the answer says so.
    """
    data, status = forged()[how]
    reply = await visitor.log_in(init_data=data)
    assert (reply.status, reply.cookies) == (status, [])
    assert CLOCKS.get(how, "") in reply.content["detail"]
    assert BOT_TOKEN.split(":")[1] not in reply.text
    assert (await visitor.get("api/limits")).status == 401


async def test_a_login_says_one_thing(visitor: Visitor) -> None:
    """A login with two secrets, none, or in an unknown format is a mistake, not an attempt.

    Who logs in with the token may give a name for the audit, which cannot be a Telegram user's id.
    """
    both = {"token": TOKEN, "init_data": init_data()}
    twice = [("token", TOKEN), ("token", "x")]
    for data in (both, twice, {}, {"password": TOKEN}):
        reply = await visitor.ask("POST", "login", data=data or b"")
        assert reply.status in {400, 415}
    assert (await visitor.ask("POST", "login", json={"token": TOKEN})).status == 415
    odd = {"Content-Type": "application/x-www-form-urlencoded; charset=unicode_escape"}
    assert (await visitor.raw("POST", "login", rb"token=\ud800", **odd)).status == 415
    assert (await visitor.raw("POST", "login", b"token=%ff%fe", **odd)).status == 415
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await visitor.raw("POST", "login", b"token=%ff%ed%a0%80", **form)).status == 401
    assert (await visitor.raw("POST", "login", b"\xff\xfe", **form)).status == 400
    assert (await visitor.get("login")).status == 401
    for name in ("4242", "<b>", "a" * 41):
        assert (await visitor.log_in(token=TOKEN, name=name)).status == 422
    assert visitor.cookies() == {}
    await visitor.log_in(token=TOKEN, name="Anna B.")
    await visitor.change("PUT", "api/bans/7", {"how_long": "1h"})
    assert (await visitor.get("api/audit")).content[0]["by"] == "Anna B.@web"
