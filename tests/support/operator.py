"""A server and the operator beside it: commands with the server's settings, while it runs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

from tests.support import ledgers
from tests.support.harness import USDC, Chain, Dev, Json, dev_server, devnet, gig_terms, running, serve_settings, until
from x402_gig.cli.main import app
from x402_gig.devnet.anvil import free_port

PRICE, REWARD, COMMISSION = 11_000_000, 10_000_000, 1_000_000
Done = subprocess.CompletedProcess[str]


@dataclass
class Desk:
    """The operator's: `env` are the settings of `serve`. Commands run in a folder of their own."""

    env: dict[str, str]
    folder: Path

    @property
    def ledger(self) -> str:
        return self.env["X402_GIG_DATABASE_URL"]

    def run(self, *arguments: str, said: str = "", **settings: str) -> Done:
        """A command, to its end, in this process: starting Python takes longer than most commands."""
        with chdir(self.folder):
            result = CliRunner().invoke(app, arguments, input=said, env=self._settings(settings))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return self._checked(Done(arguments, result.exit_code, result.stdout, result.stderr))

    def start(self, *arguments: str, **settings: str) -> Done:
        """A command, to its end, as the operator starts it."""
        done = subprocess.run(
            [sys.executable, "-m", "x402_gig", *arguments],
            env={**os.environ, **self._settings(settings)},
            cwd=self.folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return self._checked(done)

    def _settings(self, changes: dict[str, str]) -> dict[str, str]:
        return {"COLUMNS": "200", **self.env, **{f"X402_GIG_{name.upper()}": v for name, v in changes.items()}}

    def _checked(self, done: Done) -> Done:
        """Whatever it prints, the seed is not in it."""
        assert self.env["X402_GIG_SEED"] not in done.stdout + done.stderr
        return done

    def shown(self, *arguments: str, code: int = 0, **settings: str) -> Any:
        """What a command prints with --json."""
        done = self.run(*arguments, "--json", **settings)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def audit(self, code: int = 0, **settings: str) -> Json:
        return dict(self.shown("audit", code=code, **settings))

    def problems(self, **settings: str) -> list[str]:
        """What an audit lists when something differs."""
        return [f"{d['subject']}: {d['problem']}" for d in self.audit(1, **settings)["differences"]]

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return ledgers.rows(self.ledger, query, *values)


@dataclass
class Shop(Dev):
    """A running server, and the operator's desk."""

    desk: Desk = None  # type: ignore[assignment]

    def bought(self, count: int = 1) -> list[Json]:
        """So many gigs, each with reward and commission on chain."""
        ids = [self.buy(self.buyer(PRICE)).json()["gig_id"] for _ in range(count)]
        return [self.funded(gig_id) for gig_id in ids]

    def receive(self, units: int) -> str:
        """A plain transfer to the intake; who made it."""
        sender = self.buyer(units).address
        transfer(self, sender, self.intake, units)
        return sender

    def read_up(self, blocks: int = 0) -> None:
        """Mine, and wait until the ledger has read all there is."""
        if blocks:
            self.rpc("anvil_mine", hex(blocks))
        head = int(self.rpc("eth_blockNumber"), 16)
        until(lambda: self.desk.rows("select cursor_number from ledger")[0][0] >= head)


def transfer(chain: Chain, sender: str, to: str, units: int) -> Json:
    """A plain transfer by whoever holds the money; its receipt."""
    return chain.send(sender, USDC, "0xa9059cbb" + to[2:].lower().rjust(64, "0") + f"{units:064x}")


@contextmanager
def operated(chain: Chain, folder: Path, **settings: Any) -> Iterator[Shop]:
    """`serve`, with a desk that outlives it. Three blocks make a deposit final."""
    folder.mkdir(exist_ok=True)
    desk = Desk(serve_settings(chain, folder, **{"reorg_depth": 3} | settings), folder)
    with running("serve", env=desk.env, cwd=folder) as (_, ready):
        shop = Shop(chain.rpc_url, url=ready["url"], commission=desk.env["X402_GIG_COMMISSION_ADDRESS"], desk=desk)
        shop.intake = shop.quote(gig_terms())["payTo"]
        yield shop


@contextmanager
def dev_anywhere() -> Iterator[Dev]:
    """`x402-gig dev`; where ledgers are no files, `serve` beside a chain with all that `dev` brings."""
    if ledgers.are_files():
        with dev_server() as running_dev:
            yield running_dev
        return
    port = free_port(0)
    like_dev = {"reorg_depth": 64, "port": port, "public_url": f"http://127.0.0.1:{port}"}
    with TemporaryDirectory() as folder, devnet() as chain, operated(chain, Path(folder), **like_dev) as shop:
        shop.api_key = shop.desk.run("keys", "create", "x402-gig dev").stdout.strip()
        shop.buyers = [{"address": address} for address in chain.rpc("eth_accounts")]
        yield shop


def words(text: str) -> str:
    """Without the line breaks of a narrow terminal."""
    return re.sub(r"\s+", " ", text)
