import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.payments.examples import INTAKE, NONCE, PAYER, PAYMENT, PAYMENT_V1, SELLER, document, encoded
from x402_gig.errors import BadRequest
from x402_gig.payments import wire
from x402_gig.payments.outcome import Rejected, Settled
from x402_gig.payments.payment import Payment
from x402_gig.payments.wire import MAX_HEADER_CHARS, read_payment, receipt_header

NAMES = {1: "x-payment", 2: "payment-signature"}
VERSIONS = pytest.mark.parametrize("version", [1, 2])
Path = tuple[str, ...]
EXACT: Path = ("payload",)
AUTHORIZATION: Path = ("payload", "authorization")


def read(version: int, value: Any) -> Payment:
    payment = read_payment({NAMES[version]: value if isinstance(value, str) else encoded(value)})
    assert payment is not None
    return payment


def refusal(version: int, value: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read(version, value)
    # It goes into an answer as it is.
    caught.value.detail.encode()
    assert len(caught.value.detail) < 300
    return caught.value.detail


def changed(version: int, path: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """A document in which `change` was done to the object at `path`."""
    whole = document(version)
    inner = whole
    for name in path:
        inner = inner[name]
    change(inner)
    return whole


def with_field(version: int, path: Path, value: Any) -> dict[str, Any]:
    return changed(version, path[:-1], lambda inner: inner.update({path[-1]: value}))


def without_field(version: int, path: Path) -> dict[str, Any]:
    return changed(version, path[:-1], lambda inner: inner.pop(path[-1]))


# Well formed


def test_a_version_2_header_is_read_in_lower_case() -> None:
    assert read(2, document(2)) == PAYMENT


def test_a_version_1_header_claims_neither_asset_nor_payee_nor_amount() -> None:
    assert read(1, document(1)) == PAYMENT_V1


def test_without_a_payment_header_there_is_no_payment() -> None:
    assert read_payment({"content-type": "application/json", "authorization": "Basic x"}) is None


def test_version_2_alone_counts_when_both_are_there() -> None:
    assert read_payment({NAMES[1]: "garbage", NAMES[2]: encoded(document(2))}) == PAYMENT
    with pytest.raises(BadRequest, match="PAYMENT-SIGNATURE"):
        read_payment({NAMES[1]: encoded(document(1)), NAMES[2]: "%"})


@VERSIONS
def test_padding_is_optional(version: int) -> None:
    # Spaces, so that all three lengths of a last group occur.
    for spaces in range(3):
        text = json.dumps(document(version)) + " " * spaces
        padded = base64.b64encode(text.encode()).decode()
        assert read(version, padded) == read(version, padded.rstrip("=")) == read(version, document(version))


@VERSIONS
def test_unknown_fields_do_not_matter(version: int) -> None:
    places: list[Path] = [(), EXACT, AUTHORIZATION] + ([("accepted",)] if version == 2 else [])
    for path in places:
        assert read(version, with_field(version, (*path, "memo"), "hello")) == read(version, document(version))


@VERSIONS
def test_spelling_does_not_make_another_payment(version: int) -> None:
    upper = with_field(version, (*AUTHORIZATION, "nonce"), "0x" + NONCE[2:].upper())
    assert read(version, upper) == read(version, document(version))


@pytest.mark.parametrize("length", [0, 1, 64, 65, 66, 600])
def test_a_signature_may_have_any_number_of_bytes(length: int) -> None:
    signature = bytes(length)
    assert read(2, with_field(2, (*EXACT, "signature"), "0x" + signature.hex())).signature == signature


@given(st.integers(0, wire.UINT256_MAX))
def test_every_uint256_is_a_number(number: int) -> None:
    assert read(1, with_field(1, (*AUTHORIZATION, "value"), str(number))).authorization.value == number


@VERSIONS
def test_claims_of_another_seller_are_still_well_formed(version: int) -> None:
    """Whether they are the right ones is for `checks`."""
    elsewhere = with_field(version, ("network",) if version == 1 else ("accepted", "network"), "eip155:1")
    assert read(version, elsewhere).network == "eip155:1"


# Not a header


@VERSIONS
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param("=", id="padding only"),
        pytest.param("not base64!", id="other characters"),
        pytest.param("e30-", id="url-safe minus"),
        pytest.param("e30_", id="url-safe underscore"),
        pytest.param("e30=\n", id="a line break at the end"),
        pytest.param(" e30=", id="a space before"),
        pytest.param("e3\n0=", id="a line break inside"),
        pytest.param("e30===", id="too much padding"),
        pytest.param("e=30", id="padding inside"),
        pytest.param("ä", id="not ASCII"),
    ],
)
def test_only_the_standard_alphabet_is_base64(version: int, value: str) -> None:
    assert "is not base64" in refusal(version, value)


@VERSIONS
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"{", id="cut off"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b'{"x402Version": NaN}', id="NaN"),
        pytest.param(b'{"x402Version": 1e99999999999999999999}', id="an exponent without bounds"),
        pytest.param(b'{"x402Version": ' + b"9" * 5000 + b"}", id="a number without bounds"),
        pytest.param(b"[" * 33 + b"]" * 33, id="deep nesting"),
        pytest.param(b'{"a":' * 1000, id="deep nesting of objects"),
    ],
)
def test_what_is_not_json_is_refused(version: int, text: bytes) -> None:
    assert "is not base64 of JSON" in refusal(version, text)


@VERSIONS
def test_one_character_of_a_group_is_no_base64(version: int) -> None:
    assert "is not base64" in refusal(version, "e")


@VERSIONS
@pytest.mark.parametrize("value", [[], "text", 1, None, True, [{}]])
def test_what_is_not_an_object_is_refused(version: int, value: Any) -> None:
    assert "is not a JSON object" in refusal(version, encoded(value))


@VERSIONS
def test_the_length_of_a_header_is_bounded(version: int) -> None:
    text = json.dumps(document(version)).encode()
    room = MAX_HEADER_CHARS // 4 * 3 - len(text)
    assert read(version, encoded(text + b" " * room)) == read(version, document(version))
    assert "longer than 8192" in refusal(version, encoded(text + b" " * (room + 1)))
    assert "longer than 8192" in refusal(version, "A" * (MAX_HEADER_CHARS + 1))


# Not a payment


@VERSIONS
@pytest.mark.parametrize(
    "found",
    [99, 0, -1, 3, "1", "2", 1.0, 2.0, True, False, None, [2], {"2": 2}, "\ud800", "x" * 1000],
    ids=lambda found: repr(found)[:12],
)
def test_each_header_has_its_own_version(version: int, found: Any) -> None:
    assert f"carries x402Version {version}" in refusal(version, with_field(version, ("x402Version",), found))


@VERSIONS
def test_the_other_versions_document_is_refused(version: int) -> None:
    assert f"carries x402Version {version}" in refusal(version, document(3 - version))


def required(version: int) -> list[Path]:
    claims: list[Path] = [("scheme",), ("network",)]
    if version == 2:
        claims = [("accepted", name) for name in ("scheme", "network", "asset", "payTo", "amount")]
    signed = ("from", "to", "value", "validAfter", "validBefore", "nonce")
    return [
        ("x402Version",), EXACT, (*EXACT, "signature"), AUTHORIZATION, *claims, *((*AUTHORIZATION, n) for n in signed)
    ]  # fmt: skip


REQUIRED = [(version, path) for version in (1, 2) for path in required(version)]


@pytest.mark.parametrize(("version", "path"), REQUIRED, ids=str)
def test_every_field_is_needed(version: int, path: Path) -> None:
    refusal(version, without_field(version, path))


@pytest.mark.parametrize("value", [None, True, False, 1, 1.5, [], {}, [{}]], ids=repr)
@pytest.mark.parametrize(("version", "path"), REQUIRED, ids=str)
def test_every_field_has_its_type(version: int, path: Path, value: Any) -> None:
    if (path, value) == (("x402Version",), 1) and version == 1:
        value = 1.5
    refusal(version, with_field(version, path, value))


ADDRESSES: list[tuple[int, Path]] = [(v, (*AUTHORIZATION, name)) for v in (1, 2) for name in ("from", "to")]
ADDRESSES += [(2, ("accepted", "asset")), (2, ("accepted", "payTo"))]


@pytest.mark.parametrize(("version", "path"), ADDRESSES, ids=str)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(PAYER[:-2], id="19 bytes"),
        pytest.param(PAYER + "00", id="21 bytes"),
        pytest.param(PAYER[:-1], id="odd digits"),
        pytest.param(PAYER[2:], id="no 0x"),
        pytest.param("0X" + PAYER[2:], id="0X"),
        pytest.param(PAYER[:-1] + "g", id="not hex"),
        pytest.param(PAYER + "\n", id="a line break"),
        pytest.param(" " + PAYER, id="a space"),
        pytest.param("", id="empty"),
        pytest.param("vitalik.eth", id="a name"),
        pytest.param("\ud800", id="a lone surrogate"),
    ],
)
def test_an_address_is_20_bytes_of_hex(version: int, path: Path, value: str) -> None:
    refusal(version, with_field(version, path, value))


@VERSIONS
@pytest.mark.parametrize(
    "value", [NONCE[:-2], NONCE + "00", NONCE[:-1], NONCE[2:], NONCE[:-1] + "x", "0x", "", NONCE + "\n"]
)
def test_a_nonce_is_32_bytes_of_hex(version: int, value: str) -> None:
    refusal(version, with_field(version, (*AUTHORIZATION, "nonce"), value))


@VERSIONS
@pytest.mark.parametrize("value", ["", "0", "0x0", "0x0g", "1234", "0x12\n", "0X12", "0x 12"])
def test_a_signature_is_whole_bytes_of_hex(version: int, value: str) -> None:
    refusal(version, with_field(version, (*EXACT, "signature"), value))


NUMBERS = [(version, (*AUTHORIZATION, name)) for version in (1, 2) for name in ("value", "validAfter", "validBefore")]


@pytest.mark.parametrize(("version", "path"), [*NUMBERS, (2, ("accepted", "amount"))], ids=str)
@pytest.mark.parametrize(
    "value",
    [
        "",
        "01",
        "00",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "0x10",
        " 1",
        "1 ",
        "1_000",
        "1\n",
        "\u0661",
        "\u00b2",
        str(2**256),
        "9" * 78,
        "9" * 5000,
        7,
    ],
    ids=lambda value: repr(value)[:12],
)
def test_a_number_is_a_plain_decimal_string_inside_uint256(version: int, path: Path, value: Any) -> None:
    refusal(version, with_field(version, path, value))


@given(st.binary(max_size=300))
def test_no_header_does_worse_than_to_be_refused(data: bytes) -> None:
    for version in (1, 2):
        with pytest.raises(BadRequest):
            read(version, encoded(data))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from([PAYER, NONCE, "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(REQUIRED), JSON_VALUES)
def test_no_field_does_worse_than_to_be_refused(field: tuple[int, Path], value: Any) -> None:
    version, path = field
    try:
        read(version, with_field(version, path, value))
    except BadRequest as refused:
        refused.detail.encode()


# Receipts

SETTLED = Settled(1, PAYER.lower(), "0x" + "ee" * 32, {"gig_id": 1})
REJECTED = Rejected("insufficient_funds", "The payer holds 0 base units")


def receipt(payment: Payment, outcome: Settled | Rejected) -> tuple[str, Any]:
    name, value = receipt_header(payment, SELLER.network, outcome)
    return name, json.loads(base64.b64decode(value))


@pytest.mark.parametrize(
    ("payment", "name", "network"),
    [(PAYMENT, "PAYMENT-RESPONSE", "eip155:8453"), (PAYMENT_V1, "X-PAYMENT-RESPONSE", "base")],
)
def test_receipts_speak_the_version_of_their_payment(payment: Payment, name: str, network: str) -> None:
    assert receipt(payment, SETTLED) == (
        name,
        {
            "success": True,
            "transaction": SETTLED.transaction,
            "network": network,
            "payer": PAYER.lower(),
        },
    )
    assert receipt(payment, REJECTED) == (
        name,
        {
            "success": False,
            "transaction": "",
            "network": network,
            "payer": PAYER.lower(),
            "errorReason": REJECTED.reason,
            "errorMessage": REJECTED.detail,
        },
    )


def test_a_receipt_names_our_network_whatever_the_payment_claimed() -> None:
    assert receipt(replace(PAYMENT, network="solana"), REJECTED)[1]["network"] == "eip155:8453"
    assert INTAKE not in str(receipt(PAYMENT, SETTLED))
