"""How much of a stranger's token is believed."""

import pytest
from eth_abi.abi import encode

from x402_gig.evm.batcher import Result
from x402_gig.evm.erc20 import is_refusal, plain_transfers, token_info
from x402_gig.gigs.records import TokenInfo

TOKEN = "0x4ed4e862860bed51a9570b96d89af5e1b0efefed"
NOTHING = Result(True, True, 0, b"")
FAILED = Result(True, False, 0, b"")


def word(number: int) -> Result:
    return Result(True, True, 0, number.to_bytes(32))


def text(said: str) -> Result:
    return Result(True, True, 0, encode(["string"], [said])[:256])


GOOD = {"code": word(9), "decimals": word(18), "symbol": text("DEGEN"), "balance": word(0)}


def info(**changes: Result) -> TokenInfo | None:
    said = GOOD | changes
    again = changes.get("again", said["decimals"])
    return token_info(TOKEN, [said["code"], said["decimals"], again, said["symbol"], said["balance"]])


def test_a_token_is_what_it_says() -> None:
    assert info() == TokenInfo(TOKEN, "DEGEN", 18)
    assert info(symbol=Result(True, True, 0, b"MKR".ljust(32, b"\0"))) == TokenInfo(TOKEN, "MKR", 18)
    assert info(decimals=word(0)) == TokenInfo(TOKEN, "DEGEN", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": word(0)},
        {"decimals": NOTHING},
        {"decimals": FAILED},
        {"decimals": word(37)},
        {"decimals": word(2**255)},
        {"decimals": Result(True, True, 0, bytes(64))},
        {"again": word(6)},
        {"balance": NOTHING},
        {"balance": FAILED},
    ],
)
def test_what_is_no_token_or_cannot_be_believed_is_none(wrong: dict[str, Result]) -> None:
    assert info(**wrong) is None


@pytest.mark.parametrize(
    "said",
    [text(""), text("  "), text("A\nB"), text("\u202egnihtemos"), text("x" * 33), text("\0"), NOTHING, FAILED,
     Result(True, True, 0, b"\xff" * 32), Result(True, True, 0, b"\xff" * 256), Result(True, True, 0, b"short")],
)  # fmt: skip
def test_a_symbol_that_cannot_be_shown_is_the_address_in_short(said: Result) -> None:
    assert info(symbol=said) == TokenInfo(TOKEN, "0x4ed4…efed", 18)


@pytest.mark.parametrize(("answer", "refuses"), [(word(1), False), (NOTHING, False), (word(0), True), (FAILED, True)])
def test_a_transfer_is_refused_by_false_and_not_by_silence(answer: Result, refuses: bool) -> None:
    assert is_refusal(answer) is refuses


def test_logs_of_another_shape_are_left_out() -> None:
    plain = {"topics": ["0x1", "0x2", "0x3"], "data": "0x" + "0" * 64}
    assert plain_transfers([plain, plain | {"topics": ["0x1"] * 4}, plain | {"data": "0x"}]) == [plain]
