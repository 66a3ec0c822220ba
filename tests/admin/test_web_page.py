"""The operators' page in a real Chromium, over a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import pytest_asyncio
import redis.asyncio as aioredis

from bot_ratelimit import Penalty, RedisStorage, Rule, Scope, Subject
from tests.admin.web import ANNA, BORIS, TOKEN, Site, init_data, running_bot
from tests.chromium import NOT_RUN, chromium, find_chromium, violations
from tests.servers import Server

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

if find_chromium() is None:
    pytest.skip(NOT_RUN, allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="session")  # that of the browser

PHONE, DESK = 400, 1400
LONG = "n" * 120
"""Names and reasons of any length break instead of making a page wider than the window."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(request: pytest.FixtureRequest) -> AsyncIterator[Browser]:
    """One for all tests of a worker."""
    if request.config.getoption("quick"):  # an older playwright hangs when its start is skipped
        pytest.skip("it starts a browser: not in `make quick`")
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def bot(redis_server: Server) -> AsyncIterator[Site]:
    async with on_redis(redis_server.port) as found:
        yield found


@asynccontextmanager
async def on_redis(port: int) -> AsyncIterator[Site]:
    """A bot that counts in this Redis, which is emptied first."""
    rules = [Rule("3/hour", name="messages"), Rule("100/hour", Scope.CHAT), Rule("99/m", name=LONG)]
    async with aioredis.Redis(port=port) as client:
        await client.flushall()
        storage = RedisStorage(client)
        async with running_bot(storage, rules=rules, penalty=Penalty("20/hour", "1h")) as found:
            yield found
        await storage.close()


class Tab:
    """A page of the browser, and what its console said."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self._url = page, url
        self.errors: list[str] = []
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(30_000)

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.errors.append(text)

    async def go(self, path: str = "") -> None:
        await self.page.goto(self._url + path)

    async def log_in(self, token: str = TOKEN) -> None:
        await self.go()
        await self.page.get_by_label("Access token").fill(token)
        async with self.page.expect_navigation():  # what comes next must not interrupt it
            await self.press("Log in")

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def sees(self, text: str) -> None:
        """Wait until this text is on the page."""
        await self.page.get_by_text(text).first.wait_for()

    async def is_at(self, heading: str) -> None:
        """Wait until the page has this heading."""
        await self.page.get_by_role("heading", name=heading).wait_for()

    async def fits(self, *widths: int) -> bool:
        """Whether nothing lies outside the window, or overflows a card, at each of these widths."""
        cards = "[...document.querySelectorAll('.card')].some(e => e.scrollWidth > e.clientWidth)"
        for width in widths:
            await self.page.set_viewport_size({"width": width, "height": 900})
            wide: int = await self.page.evaluate("document.documentElement.scrollWidth")
            if wide > width or await self.page.evaluate(cards):
                return False
        return True


@asynccontextmanager
async def opened(browser: Browser, bot: Site, **options: Any) -> AsyncIterator[Tab]:
    """A new tab of a browser that knows nobody, on a desk."""
    context = await browser.new_context(viewport={"width": DESK, "height": 900}, **options)
    yield Tab(await context.new_page(), bot.url)
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser, bot: Site) -> AsyncIterator[Tab]:
    """Not logged in."""
    async with opened(browser, bot) as found:
        yield found


async def test_only_the_token_opens_the_page(tab: Tab, bot: Site) -> None:
    """A wrong token is told; the right one opens the overview; after logging out it is shut.

    Logged out in one tab, the other ones show the login form by themselves.
    """
    await tab.log_in("a-wrong-token-0123456789")
    await tab.page.get_by_role("alert").wait_for()
    assert "wrong" in await tab.page.get_by_role("alert").inner_text()
    await tab.page.get_by_label("Access token").fill(TOKEN)
    await tab.press("Log in")
    await tab.is_at("Overview")
    await tab.sees("Live")
    other = Tab(await tab.page.context.new_page(), bot.url)
    await other.go("bans")
    await other.press("Log out")
    await tab.page.get_by_label("Access token").wait_for()
    await tab.go("history")
    assert await tab.page.get_by_role("heading", level=1).inner_text() == "Log in"


async def test_an_admin_enters_from_telegram_without_typing(tab: Tab) -> None:
    """What Telegram adds to the address opens the page, is not kept there, and names the admin.

    The session of the same admin goes on; that of another one must not be taken over.
    """
    for admin in (ANNA, ANNA, BORIS):
        await tab.page.goto("about:blank")
        await tab.go(f"#tgWebAppData={quote(init_data(admin))}&tgWebAppVersion=9.1")
        await tab.is_at("Overview")
        await tab.sees(f"{admin}@web")
        assert "tgWebAppData" not in tab.page.url
    assert tab.errors == []


async def test_a_change_is_done_once(tab: Tab, bot: Site) -> None:
    """A button that is pressed twice, while the first change of all takes its time, counts once.

    Reloading the page that says what was done shows the user, and bans nobody again.
    """
    await tab.log_in()
    await tab.go("limit?name=messages&limit=9/hour&state=on")
    await tab.page.get_by_role("button", name="Change", exact=True).dblclick()
    await tab.sees("Version 1 is in force on 1 of 1 instances")
    assert (await bot.control.changes.current()).version == 1
    await tab.go("ban?user=7&how_long=1h")
    await tab.press("Ban")
    await tab.sees("is banned until")
    await tab.page.reload()
    await tab.is_at("User 7")
    assert len(await bot.control.audit()) == 2
    assert tab.errors == []


async def test_the_chart_moves_while_one_looks(tab: Tab, bot: Site) -> None:
    """Decisions that are made meanwhile appear in bars, numbers and table, without a reload."""
    await bot.send(2, 7)
    await tab.log_in()
    await tab.page.evaluate("window.sameDocument = true")
    before = int(await tab.page.locator("#totals dd").first.inner_text())
    await tab.page.get_by_text("Show as a table").click()
    height = await tab.page.locator("#bars g:last-of-type .refused").get_attribute("height")
    await bot.send(10, 7)
    assert height == "0.0"
    # They may be read in the middle of the ten, of which the first one is allowed.
    await tab.page.wait_for_function(
        "before => { const [allowed, refused] = document.querySelectorAll('#totals dd');"
        " const bars = [...document.querySelectorAll('#bars .refused')];"  # a new one may begin
        " return Number(allowed.textContent) > before && Number(refused.textContent) > 0"
        " && bars.some(bar => Number(bar.getAttribute('height')) > 0) }",
        arg=before,
    )
    rows = tab.page.locator("#hours-rows tr")
    assert set(await rows.locator("td:nth-of-type(2)").all_inner_texts()) != {"0"}
    assert await rows.first.is_visible()  # what was folded out stays so
    assert await tab.page.evaluate("window.sameDocument")
    assert tab.errors == []


async def test_an_outage_is_said_and_its_end_too(browser: Browser, lasting_server: Server) -> None:
    """With Redis away the page still answers, says so, and comes back by itself."""
    async with on_redis(lasting_server.port) as bot, opened(browser, bot) as tab:
        await tab.log_in()
        await tab.sees("All limits are on.")
        lasting_server.kill()
        await tab.sees("Redis does not answer: meanwhile the bot handles every update")
        lasting_server.start()
        await tab.sees("All limits are on.")


async def test_a_frozen_bot_is_not_called_live(tab: Tab) -> None:
    """Without answers the page says since when it shows nothing new, and turns grey."""
    page = tab.page

    async def hurried(route: Any) -> None:
        text = await (await route.fetch()).text()
        assert "SILENCE = 10000" in text
        text = text.replace("SILENCE = 10000", "SILENCE = 1000")
        await route.fulfill(body=text, content_type="text/javascript")

    await page.route("**/console.js*", hurried)
    await tab.log_in()
    live, stale = page.locator("#liveness.on"), page.locator(".stale #health")
    for _ in range(2):
        await live.wait_for()
        assert await live.inner_text() == "Live"
        await page.evaluate(
            """() => { window.answering = window.fetch; window.fetch = (_, { signal }) =>
                new Promise((_, failed) =>
                    signal.addEventListener("abort", () => failed(signal.reason))) }"""
        )
        await stale.wait_for()
        assert "Not live; as of " in await page.locator("#liveness").inner_text()
        await page.evaluate("window.fetch = window.answering")
    await live.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_fits_and_axe_finds_nothing(
    browser: Browser, bot: Site, scheme: Any
) -> None:
    """Every page, also with errors, passes the serious rules of an accessibility checker.

    It fits the window, of a phone too, and the console stays empty.
    """
    await bot.send(5, 7)
    await bot.control.ban(Subject(user=8), "1h", 3 * LONG)
    await bot.control.set_rule(LONG, "50/hour", shadow=True)
    await bot.control.changes.pause("1h")
    await bot.obey()
    async with opened(browser, bot, color_scheme=scheme) as tab:
        rules = ["color-contrast"] if scheme == "dark" else []  # all else is as in light
        await tab.page.set_content("<p style='color: #777; background: #888'>hard to read</p>")
        assert await violations(tab.page, rules), "axe does not work"
        await tab.go()
        found = {"login": await violations(tab.page, rules)}
        await tab.log_in("a-wrong-token-0123456789")
        found["refused"] = await violations(tab.page, rules)
        await tab.log_in()
        tab.errors.clear()  # Chromium notes that an answer was 401
        for path in (
            *("?hours=48", "user?user=8", "user", "ban", "forgive?user=7", "limit?name=messages"),
            *("ban?user=7&how_long=1h&reason=spam", "unban?user=8", "exempt?user=7", "pause"),
            *("limit?name=messages&limit=2/minute&state=trial", "pause?how_long=1h", "resume"),
            *("penalty?after=5/minute&ban=1h", f"limit?name={LONG}&limit=9/hour"),
            *("rollback?version=0", "forgive?user=8"),
            *("", "user?user=7", "bans", "history"),
        ):
            await tab.go(path)
            found[path] = await violations(tab.page, rules)
            assert await tab.page.locator("h1").count() == 1, path
            assert await tab.fits(320, PHONE, 480, 700, 860, 1_040, 1_060, 1_200, DESK), path
        assert tab.errors == []
        for path in (
            *("user?user=x", "limit?name=messages&limit=bad", "ban?user=&how_long=1h", "nowhere"),
            *("", "user?user=7", "bans", "history"),
        ):
            await tab.go(path)
            assert await tab.fits(DESK, PHONE), path
            found[f"{path} on a phone"] = await violations(tab.page, rules)
        assert {path: each for path, each in found.items() if each} == {}


async def test_the_keyboard_alone_is_enough(tab: Tab, bot: Site) -> None:
    """The first stop skips to the content; reading goes on at what is asked, and what was done."""
    await bot.send(5, 7)
    await tab.go()
    keyboard = tab.page.keyboard
    await gets_focus(tab, "Access token")
    await keyboard.type(TOKEN)
    await keyboard.press("Enter")
    await tab.is_at("Overview")
    await keyboard.press("Tab")
    await gets_focus(tab, "Skip to the content")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await tab.page.evaluate(outline) == "solid"
    await keyboard.press("Enter")
    await keyboard.press("Tab")
    assert await tab.page.evaluate("document.activeElement.closest('main') !== null")
    await tab.go("forgive?user=7")
    await tab.sees("messages: 3 of 3 used. The count is deleted")
    assert await bot.send(1, 7) == 0  # looking at it has changed nothing
    await gets_focus(tab, "Forgive user 7?")
    await tab.page.get_by_role("button", name="Forgive", exact=True).focus()
    await keyboard.press("Enter")
    await gets_focus(tab, "User 7 is forgiven: ")
    assert await bot.send(1, 7) == 1
    assert tab.errors == []


FOCUSED = "(e => e.labels?.[0]?.textContent ?? e.textContent)(document.activeElement).trim()"


async def gets_focus(tab: Tab, name: str) -> None:
    """Wait until this has the focus: a browser sets it some time after the page has loaded."""
    await tab.page.wait_for_function(f"name => {FOCUSED}.startsWith(name)", arg=name)


async def test_everything_works_without_a_script(browser: Browser, bot: Site) -> None:
    """Without JavaScript the page shows chart and table, and forgives, bans, changes as well."""
    await bot.send(5, 7)
    async with opened(browser, bot, java_script_enabled=False) as tab:
        await tab.log_in()
        await tab.page.get_by_role("img", name="Allowed 3, Refused 2").wait_for()
        assert await tab.page.locator("[data-zone]").inner_text() == "UTC"
        await tab.page.get_by_label("Id of a user or a chat").fill("7")
        await tab.press("Find")
        await tab.page.get_by_role("link", name="Forgive").first.click()
        await tab.press("Forgive")
        await tab.sees("User 7 is forgiven: ")
        await tab.go("limit?name=messages")
        await tab.page.get_by_label("Trial").check()
        await tab.press("Preview")
        await tab.press("Change")
        await tab.sees("Version 1 is in force on 1 of 1 instances")
        await bot.obey()
        assert await bot.send(9, 7) == 9
        assert tab.errors == []
