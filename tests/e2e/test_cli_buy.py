"""`x402-gig buy` and `x402-gig sign`, run as a buyer runs them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from eth_account.signers.local import LocalAccount

from tests.support.harness import CREATE, Dev, Json, decode, gig_terms, until
from tests.support.operator import words
from x402_gig.buyer.client import is_on_this_machine
from x402_gig.devnet.anvil import buyers

Done = subprocess.CompletedProcess[str]
PURSE = 100_000_000
UNAVAILABLE = {"error": "The ledger cannot be used right now", "reason": "unavailable"}
TOO_MANY = {"error": "Too many requests", "reason": "rate_limited"}
LIKE = ("--type", "like", "--url", "https://farcaster.xyz/dwr/0x1a2b3c4d", "--amount", "10")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "x402_gig", *arguments]


def key_env(buyer: LocalAccount) -> dict[str, str]:
    return {**os.environ, "BUYER_KEY": "0x" + bytes(buyer.key).hex()}


def cli(buyer: LocalAccount, *arguments: str) -> Done:
    """Run to the end; whatever is printed, the key is not in it. The servers are all on this machine."""
    done = subprocess.run(
        command(*arguments, "--yes"), env=key_env(buyer), capture_output=True, text=True, timeout=120, check=False
    )
    assert bytes(buyer.key).hex() not in done.stdout + done.stderr
    return done


def buy(dev: Dev, buyer: LocalAccount, *arguments: str, max_price: str = "11") -> Done:
    return cli(buyer, "buy", dev.url, "--max-price", max_price, *arguments)


@pytest.fixture
def terms(tmp_path: Path) -> Path:
    """Terms in a file, with numbers as JSON writes them."""
    path = tmp_path / "gig.json"
    path.write_text(json.dumps(gig_terms(), indent=2))
    return path


def test_buy_prints_a_gig_that_is_paid_and_funded(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)

    done = buy(dev, buyer, *LIKE)

    assert done.returncode == 0, done.stderr
    found = re.search(r"Gig (\d+) is active", done.stdout)
    assert found, done.stdout
    gig = dev.gig(int(found[1]))
    assert gig["gig_wallet_address"] in done.stdout
    assert "11 USDC on eip155:8453" in done.stderr
    assert gig["funding"]["reward_transaction"] in done.stderr
    assert dev.usdc(buyer.address) == PURSE - 11_000_000
    assert dev.usdc(gig["gig_wallet_address"]) == 10_000_000


def test_buy_json_is_one_document(dev: Dev, terms: Path) -> None:
    buyer = dev.buyer(PURSE)

    done = buy(dev, buyer, "--terms", str(terms), "--json")

    assert done.returncode == 0, done.stderr
    bought = json.loads(done.stdout)
    assert set(bought) == {"gig", "payment", "price"}
    assert bought["price"] == bought["gig"]["total_amount"] == "11"
    assert bought["payment"]["success"] is True
    assert bought["payment"]["transaction"] == bought["gig"]["funding"]["deposit_transaction"]
    shown = dev.gig(bought["gig"]["gig_id"])
    assert shown["how_to_earn"] == json.loads(terms.read_text())["how_to_earn"]
    assert dev.usdc(buyer.address) == PURSE - 11_000_000
    assert dev.usdc(bought["gig"]["gig_wallet_address"]) == 10_000_000


def test_every_flag_reaches_the_gig(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    token = "0x" + "12" * 20
    flags = {
        "type": "hold_erc20",
        "amount": "12.5",
        "duration": "3days",
        "start": "2025-10-01",
        "platform": "onchain",
        "how-to-earn": "Hold it",
        "earning-criteria": "By weight",
        "token-contract": token,
        "token-amount-needed": "0.5",
        "verifier": "mine",
        "keyword": "usdc",
    }

    done = buy(
        dev,
        buyer,
        *(word for name, value in flags.items() for word in (f"--{name}", value)),
        "--json",
        max_price="13.75",
    )

    assert done.returncode == 0, done.stderr
    gig = dev.gig(json.loads(done.stdout)["gig"]["gig_id"])
    assert (gig["gig_type"]["id"], gig["platform"], gig["amount"]) == ("hold_erc20", "onchain", "12.5")
    assert (gig["how_to_earn"], gig["earning_criteria"]) == ("Hold it", "By weight")
    assert gig["duration_ms"] == 72 * 3_600_000
    assert dev.usdc(buyer.address) == PURSE - 13_750_000


def test_a_price_above_the_limit_is_refused_before_anything_is_signed(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)

    done = buy(dev, buyer, *LIKE, max_price="10.999999")

    assert (done.returncode, done.stdout) == (1, "")
    assert "The price is 11 USDC and your limit is 10.999999 USDC" in done.stderr
    assert "signed" not in done.stderr
    assert dev.usdc(buyer.address) == PURSE


def test_bad_terms_show_every_problem(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)

    done = buy(dev, buyer, "--type", "like", "--amount", "9", "--duration", "1year", "--platform", "myspace")

    assert (done.returncode, done.stdout) == (1, "")
    for problem in ("Minimum amount is 10", "Invalid duration", "Invalid platform", "URL required for like tasks"):
        assert f"• {problem}" in done.stderr
    assert dev.usdc(buyer.address) == PURSE


def test_a_refused_payment_shows_reason_and_detail(dev: Dev) -> None:
    buyer = dev.buyer(10_999_999)

    done = buy(dev, buyer, *LIKE)

    assert (done.returncode, done.stdout) == (1, "")
    assert "Nothing was charged. The server says 402 insufficient_funds: " in done.stderr
    assert dev.usdc(buyer.address) == 10_999_999


@pytest.mark.parametrize("key", ["", "0x1234", "not a key"])
def test_a_key_that_is_missing_or_wrong_is_a_usage_error(dev: Dev, key: str) -> None:
    done = subprocess.run(
        command("buy", dev.url, "--max-price", "11", *LIKE),
        env={**os.environ, "BUYER_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "BUYER_KEY" in done.stderr
    assert not key or key not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which gig?"),
        (["--terms", "gig.json", *LIKE], "not both"),
        (["--terms", "nowhere.json"], "nowhere.json"),
        ([*LIKE, "--max-price", "eleven"], "--max-price"),
        ([*LIKE, "--chain", "ethereum"], "base-sepolia"),
    ],
)
def test_wrong_usage(dev: Dev, arguments: list[str], said: str) -> None:
    done = buy(dev, dev.buyer(0), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_server_that_is_not_there_charges_nothing(dev: Dev) -> None:
    done = cli(dev.buyer(0), "buy", "http://127.0.0.1:9", "--max-price", "11", *LIKE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be reached" in done.stderr


def met(mishap: str, post: Callable[[], httpx.Response]) -> httpx.Response | None:
    """What comes back, if anything."""
    if mishap == "lost on the way":
        return None
    if mishap == "too many":
        return httpx.Response(429, headers={"Retry-After": "0"}, json=TOO_MANY)
    answer = post()
    if mishap == "unavailable":
        return httpx.Response(503, headers={"Retry-After": "0"}, json=UNAVAILABLE)
    if mishap == "bad gateway":
        return httpx.Response(502, text="<html>")
    if mishap == "unknown":
        return httpx.Response(503, headers={"Retry-After": "0"}, json={"error": "Not known yet"})
    return None if mishap == "answer lost" else answer


@contextmanager
def mishaps(dev: Dev, *kinds: str) -> Iterator[tuple[str, list[str]]]:
    """A way to `dev` on which paid requests meet these mishaps, one after the other; its URL, and the headers seen."""
    seen: list[str] = []
    coming = list(kinds)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(httpx.get(dev.url + self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            paid = self.headers.get("PAYMENT-SIGNATURE")
            seen.extend([paid] if paid else [])
            mishap = coming.pop(0) if paid and coming else ""
            headers = {"PAYMENT-SIGNATURE": paid} if paid else None
            answer = met(mishap, lambda: dev.post(body, headers, self.path))
            if answer is not None:
                self.answer(answer)

        def answer(self, answer: httpx.Response) -> None:
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_whatever_happens_on_the_way_one_signature_is_sent_and_charged_once(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    with mishaps(dev, "too many", "lost on the way", "answer lost", "too many", "unknown") as (url, seen):
        done = cli(buyer, "buy", url, "--max-price", "11", *LIKE, "--json")
    assert done.returncode == 0, done.stderr
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert dev.usdc(buyer.address) == PURSE - 11_000_000
    assert dev.usdc(json.loads(done.stdout)["gig"]["gig_wallet_address"]) == 10_000_000


@pytest.mark.parametrize("script", [[sys.executable, "scripts/buy_gig.py"], ["node", "scripts/buy_gig.mjs"]])
def test_the_script_to_copy_sends_its_one_signature_until_there_is_an_answer(dev: Dev, script: list[str]) -> None:
    buyer = dev.buyer(PURSE)
    with mishaps(dev, "too many", "answer lost", "unknown", "unavailable", "bad gateway") as (url, seen):
        done = subprocess.run(
            [*script, url], env=os.environ | key_env(buyer), capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert (len(seen), len(set(seen))) == (6, 1)
    assert dev.usdc(buyer.address) == PURSE - 11_000_000


def test_after_a_503_whatever_its_reason_nobody_is_told_that_nothing_was_charged(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    with mishaps(dev, *["unavailable"] * 100) as (url, seen):
        done = cli(buyer, "buy", url, "--max-price", "11", *LIKE, "--deadline", "2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "The outcome is not known" in done.stderr
    assert len(set(seen)) == 1
    assert dev.usdc(buyer.address) == PURSE - 11_000_000


def test_whoever_is_only_ever_told_to_come_back_later_has_paid_nothing(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    with mishaps(dev, *["too many"] * 100) as (url, _):
        done = cli(buyer, "buy", url, "--max-price", "11", *LIKE, "--deadline", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "429 Too many requests. The payment was not sent" in done.stderr
    assert dev.usdc(buyer.address) == PURSE


def ask_again(stalled: Dev, buyer: LocalAccount, printed: str) -> Json:
    """Make blocks again and run the curl command that was printed; its JSON."""
    stalled.mine()
    [again] = [line for line in printed.splitlines() if line.startswith("curl ")]
    head, body = shell(again)
    assert head.startswith("HTTP/1.1 200"), head
    assert stalled.usdc(buyer.address) == PURSE - 11_000_000
    return body


def shell(line: str) -> tuple[str, Json]:
    """Run a `curl -i`; the answer's head and its JSON."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=True)
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    return head, dict(json.loads(body))


NAMES = ("127.0.0.1", "localhost", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["buy", "sign"])
def test_a_key_that_is_worth_something_signs_nothing_for_this_machine(dev: Dev, verb: str, name: str) -> None:
    """It may be a devnet, and Base itself would honour the signature."""
    buyer, port = dev.buyer(PURSE), dev.url.rpartition(":")[2]
    arguments = command(verb, f"http://{name}:{port}", "--max-price", "11", *LIKE)
    done = subprocess.run(arguments, env=key_env(buyer), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is on this machine, and BUYER_KEY holds the key of none" in words(done.stderr)
    assert "--yes" in done.stderr
    assert dev.usdc(buyer.address) == PURSE


def test_a_test_account_of_the_devnet_buys_without_being_asked(dev: Dev) -> None:
    account = buyers()[1]
    dev.give_usdc(account.address, PURSE)
    arguments = command("buy", dev.url, "--max-price", "11", *LIKE)
    done = subprocess.run(arguments, env=key_env(account), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert dev.usdc(account.address) == PURSE - 11_000_000


def test_every_address_of_this_machine_is_on_it() -> None:
    """Also the one by which others reach it."""
    found = [where for addresses in psutil.net_if_addrs().values() for where in addresses]
    numbers = [where.address for where in found if where.family == socket.AF_INET]
    assert numbers
    assert [number for number in numbers if not is_on_this_machine(f"http://{number}:4021")] == []


def test_a_server_elsewhere_is_not_on_this_machine() -> None:
    assert not any(
        is_on_this_machine(url) for url in ("http://192.0.2.1:4021", "https://[2001:db8::1]/x", "http://[", "")
    )


def test_an_unknown_outcome_says_how_to_ask_again(stalled: Dev) -> None:
    buyer = stalled.buyer(PURSE)

    done = buy(stalled, buyer, *LIKE, "--deadline", "3")

    assert (done.returncode, done.stdout) == (3, "")
    assert "The outcome is not known" in done.stderr
    assert ask_again(stalled, buyer, done.stderr)["status"] == "active"


def test_an_interrupted_purchase_says_how_to_ask_again(stalled: Dev) -> None:
    buyer = stalled.buyer(PURSE)
    arguments = command("buy", stalled.url, "--max-price", "11", *LIKE, "--yes")
    with subprocess.Popen(arguments, env=key_env(buyer), stderr=subprocess.PIPE, text=True) as buying:
        until(lambda: int(stalled.rpc("txpool_status")["pending"], 16))
        buying.send_signal(signal.SIGTERM)
        _, printed = buying.communicate(timeout=30)
    assert buying.returncode == 3
    assert ask_again(stalled, buyer, printed)["status"] == "active"


@pytest.mark.parametrize(
    ("flags", "sent", "received"),
    [([], "PAYMENT-SIGNATURE", "PAYMENT-RESPONSE"), (["--v1"], "X-PAYMENT", "X-PAYMENT-RESPONSE")],
)
def test_sign_makes_a_header_for_curl(dev: Dev, terms: Path, flags: list[str], sent: str, received: str) -> None:
    buyer = dev.buyer(PURSE)

    signed = cli(buyer, "sign", dev.url, "--terms", str(terms), "--max-price", "11", *flags)

    assert signed.returncode == 0, signed.stderr
    [header] = signed.stdout.splitlines()
    assert header.startswith(f"{sent}: ")
    assert f"11 USDC on {'base' if flags else 'eip155:8453'}, to {dev.quote(gig_terms())['payTo']}" in signed.stderr
    assert f"by {buyer.address}, valid until 20" in signed.stderr
    assert dev.usdc(buyer.address) == PURSE
    head, gig = shell(f"curl -sS -i --max-time 90 {dev.url}{CREATE} -H '{header}' --data-binary @{terms}")
    assert head.startswith("HTTP/1.1 200"), head
    receipts = [line.split()[1] for line in head.splitlines() if line.lower().startswith(f"{received.lower()}: ")]
    assert [decode(receipt)["transaction"] for receipt in receipts] == [gig["payment"]["transaction"]]
    assert dev.usdc(buyer.address) == PURSE - 11_000_000


def test_sign_shows_the_body_that_the_flags_make(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    signed = cli(buyer, "sign", dev.url, *LIKE, "--max-price", "11")
    [body] = [line for line in signed.stderr.splitlines() if line.startswith("{")]
    answer = dev.post(body, dict([signed.stdout.strip().split(": ")]))
    assert answer.status_code == 200, answer.text
    assert dev.usdc(buyer.address) == PURSE - 11_000_000
