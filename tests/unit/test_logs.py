import asyncio
import logging
import subprocess
import sys
from typing import Any

import orjson
import pytest

from x402_gig.logs import Hiding, PaymentLog, Together, Trouble


class Pipe:
    """What was written, and how often it was sent on."""

    def __init__(self) -> None:
        self.pending = ""
        self.sent: list[str] = []

    def write(self, text: str) -> None:
        self.pending += text

    def flush(self) -> None:
        if self.pending:
            self.sent.append(self.pending)
        self.pending = ""


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def log(pipe: Pipe) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(Together(pipe))
    return logger


def test_a_line_of_no_event_loop_goes_out_at_once(log: logging.Logger, pipe: Pipe) -> None:
    log.info("one")
    assert pipe.sent == ["one\n"]


def test_what_lasts_is_said_when_it_begins_changes_and_ends(log: logging.Logger, pipe: Pipe) -> None:
    trouble = Trouble(log, "watcher")
    for problem in ("", "no node", "no node", "no disk", "", ""):
        trouble.is_now(problem)
    assert pipe.sent == ["watcher: no node\n", "watcher: no disk\n", "watcher: at work again\n"]


def test_lines_of_one_turn_go_out_together_and_before_the_next_one_waits(log: logging.Logger, pipe: Pipe) -> None:
    async def talk() -> list[str]:
        for payment_id in (1, 2):
            PaymentLog(log, payment_id).info("settled")
        assert pipe.sent == []
        await asyncio.sleep(0)
        return list(pipe.sent)

    assert asyncio.run(talk()) == ["payment 1: settled\npayment 2: settled\n"]


def test_what_was_said_in_the_last_turn_goes_out_at_the_end(log: logging.Logger, pipe: Pipe) -> None:
    async def leave() -> None:
        log.info("bye")

    asyncio.run(leave())
    logging.shutdown([lambda: log.handlers[0]])  # as at the end of the process
    assert pipe.sent == ["bye\n"]


class Full(Pipe):
    """A disk without room, or a pipe whose reader has gone."""

    def flush(self) -> None:
        raise OSError("no room")


def test_where_no_line_can_be_written_nobody_logs_that_in_turn() -> None:
    told: list[Any] = []

    async def talk() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        log = logging.Logger("test")
        log.addHandler(Together(Full()))
        log.info("one")
        await asyncio.sleep(0)

    asyncio.run(talk())
    assert told == []


def test_a_line_names_its_payment_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import logging; from x402_gig.logs import *; configure(20, as_json=True); "
    code += "PaymentLog(logging.getLogger('a'), 7).info('settled in %s', '0x1'); 1/0"
    line, *trace = _run(code, capfd)
    assert orjson.loads(line) | {"at": ""} == {
        "at": "", "levelname": "INFO", "name": "a", "message": "payment 7: settled in 0x1", "payment_id": 7,
    }  # fmt: skip
    assert trace[-1].startswith("ZeroDivisionError")


def _run(code: str, capfd: pytest.CaptureFixture[str]) -> Any:
    subprocess.run([sys.executable, "-c", code], check=False)
    return capfd.readouterr().err.splitlines()


SEED = "legal winner thank year wave sausage worth useful legal winner thank yellow"
PART_OF_A_URL = ("ab%2Bcd", "ab+cd", "k%21secret", "k!secret", "p%23ss%20word", "p#ss word")


@pytest.mark.parametrize(
    "secret",
    [
        "53718293-1a2b-4c3d-9e8f-0123456789ab",
        "7-abcDEFghijkLMNOPqrst",
        "12.SECRETabcdefgh1234567",
        "0x" + "a" * 40 + ".SECRETKEY1234567890",
        SEED,
        *PART_OF_A_URL,
    ],
)
def test_words_that_may_be_secret_are_hidden(secret: str) -> None:
    hiding = Hiding("https://u%40x:p%23ss%20word@h.example/v2/ab%2Bcd?key=k%21secret")
    assert hiding.of(f"DENIED: {secret}") == "DENIED: …"


@pytest.mark.parametrize(
    "text", ["tx cost 21000000000000001.", "for 0x" + "aA" * 20 + ": next nonce 5", "of 0x" + "aA" * 20 + "."]
)
def test_numbers_and_addresses_are_not_hidden(text: str) -> None:
    assert Hiding("http://127.0.0.1:1").of(text) == text
