"""The files for containers fit the project: no engine is needed to see that."""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.project.test_docs import section
from x402_gig.server.http import GRACE_S
from x402_gig.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NGINX = (ROOT / "nginx.conf").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVERS = {name: service for name, service in SERVICES.items() if name.startswith("server")}
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
# Settings that `.env` does not give the servers: the first three fit `nginx.conf`, and the phrase is in a file.
LEFT_OUT = {"host", "port", "keep_alive_s", "seed"}
OF_COMPOSE = {"seed_file", "database_url", "redis_url"}
# What `wait` allows a request beyond MAX_TIMEOUT_S, as docs/operations.md says.
MARGIN_S = 6


def address(service: dict[str, Any]) -> str:
    return str(service["networks"]["default"]["ipv4_address"])


def seconds(text: str) -> int:
    [(number, unit)] = re.findall(r"^(\d+)([sm])$", text)
    return int(number) * {"s": 1, "m": 60}[unit]


def test_every_setting_that_the_files_name_exists() -> None:
    named = set(re.findall(PREFIX + r"(\w+)", DOCKERFILE + (ROOT / "compose.yaml").read_text()))
    assert {name.lower() for name in named} - set(Settings.model_fields) == set()
    assert "COMMISSION_ADDRESS" in named


def test_every_setting_in_env_reaches_every_server_but_those_that_the_document_names() -> None:
    for server in SERVERS.values():
        given = {name.removeprefix(PREFIX).lower(): value for name, value in server["environment"].items()}
        assert set(Settings.model_fields) - set(given) == LEFT_OUT
        assert {name for name, value in given.items() if f"${{{PREFIX}{name.upper()}:" not in value} == OF_COMPOSE
    containers = section((ROOT / "docs/operations.md").read_text(), "Containers")
    assert [name for name in LEFT_OUT | OF_COMPOSE if f"`{name.upper()}`" not in containers] == []


def test_every_path_that_the_files_take_exists_and_is_let_into_the_build() -> None:
    copied = [part for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for part in line.split()]
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert sorted(copied) == sorted(let_in)
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    paths = [*copied, *(path for path in mounted if path.startswith("."))]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_image_is_pinned_and_every_stage_exists() -> None:
    stages = re.findall(r" AS (\w+)$", DOCKERFILE, re.M)
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) - set(stages)
    pulled = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert [image for image in bases | pulled if not re.search(r":\d+\.\d+\.?\d*-", image)] == []
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= set(stages)
    assert stages[-1] == "server", "what `docker build` makes without a target"


def test_nginx_knows_the_servers_and_is_the_only_proxy_they_trust() -> None:
    port = DEFAULTS["port"]
    upstream = set(re.findall(r"^\s+server ([\d.]+:\d+);", NGINX, re.M))
    assert upstream == {f"{address(server)}:{port}" for server in SERVERS.values()}
    assert len(upstream) == 3
    trusted = {server["environment"][PREFIX + "TRUSTED_PROXIES"].split("$")[0] for server in SERVERS.values()}
    assert trusted == {address(SERVICES["nginx"])}
    [published] = SERVICES["nginx"]["ports"]
    assert f"listen {published.split(':')[-1]} " in NGINX
    assert f"EXPOSE {port}\n" in DOCKERFILE
    assert [name for name, server in SERVERS.items() if "ports" in server] == []


def test_nobody_gives_up_before_a_payment_is_settled() -> None:
    [read_timeout] = re.findall(r"proxy_read_timeout (\w+);", NGINX)
    assert seconds(read_timeout) > DEFAULTS["max_timeout_s"] + MARGIN_S
    assert seconds(SERVICES["nginx"]["stop_grace_period"]) > seconds(read_timeout)
    assert all(seconds(server["stop_grace_period"]) >= 2 * GRACE_S for server in SERVERS.values())


def test_nginx_closes_a_connection_that_nobody_uses_before_the_servers_do() -> None:
    [kept] = re.findall(r"keepalive_timeout (\w+);", NGINX)
    assert seconds(kept) + MARGIN_S < DEFAULTS["keep_alive_s"]


def test_no_image_runs_as_root_and_no_secret_has_a_value() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["10001:10001"]
    assert [name for name, service in SERVICES.items() if not ("build" in service or "user" in service)] == ["database"]
    values = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    assert all("${POSTGRES_PASSWORD:?}" in value for value in values if "gigs:" in value)
    assert SERVERS["server1"]["environment"][PREFIX + "SEED_FILE"] == "/run/secrets/seed"
