import contextlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from x402_gig.errors import NotFound
from x402_gig.gigs.catalogue import RULES, Duration, GigType
from x402_gig.gigs.records import TokenInfo
from x402_gig.gigs.requests import KeyedGigRequest, Reading, read_request
from x402_gig.gigs.terms import Draft, KeyLimits, Limits, Terms, check_chain, read_terms, token_of

USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
DEGEN = "0x4ed4E862860beD51a9570b96d89aF5E1B0Efefed"
NOW = datetime(2025, 10, 1, 12, tzinfo=UTC)
LIMITS = Limits(minimum_units=10_000_000, maximum_units=1_000_000_000_000, token_address=USDC)

CAST = "https://farcaster.xyz/alice/0x12345678"
ALICE = "https://farcaster.xyz/alice"
TWEET = "https://x.com/alice/status/1234567890"
TOKEN = {"token_contract": DEGEN, "token_amount_needed": 5}
EXTRAS: dict[str, dict[str, Any]] = {
    "mention": {},
    "like": {"url": CAST},
    "recast": {"url": CAST},
    "boost": {"url": CAST},
    "custom_bounty": {"how_to_earn": "Draw a cat."},
    "follow": {"url": ALICE},
    "hold_erc20": TOKEN,
    "buy_erc20": TOKEN,
}


def body_of(gig_type: str = "mention", /, **fields: Any) -> dict[str, Any]:
    """A complete body for one gig of that type, then changed by `fields`."""
    common = {
        "chain": "base",
        "token_address": USDC,
        "amount": 10,
        "start_time": "2025-10-01T15:00:00Z",
        "duration": "1day",
        "gig_type": gig_type,
    }
    return common | EXTRAS.get(gig_type, {}) | fields


def read(gig_type: str = "mention", /, **fields: Any) -> Draft:
    return read_terms(body_of(gig_type, **fields), LIMITS, NOW)


def problems(gig_type: str = "mention", /, **fields: Any) -> list[str]:
    return list(read(gig_type, **fields).problems)


def terms_of(gig_type: str = "mention", /, **fields: Any) -> Terms:
    draft = read(gig_type, **fields)
    assert draft.problems == ()
    assert draft.terms is not None
    return draft.terms


@pytest.mark.parametrize("gig_type", GigType)
def test_each_type_needs_no_more_than_its_required_fields(gig_type: GigType) -> None:
    terms = terms_of(gig_type)
    rules = RULES[gig_type]
    assert (terms.gig_type, terms.platform) == (gig_type, rules.platform)
    assert terms.how_to_earn == (rules.how_to_earn or "Draw a cat.")
    assert terms.earning_criteria == rules.earning_criteria


def test_terms_have_one_normal_form() -> None:
    terms = terms_of("like", amount=Decimal("10.50"), keyword="$DEGEN", verifier="")
    assert terms.model_dump(mode="json") == {
        "chain": "base",
        "token_address": USDC.lower(),
        "amount_units": 10_500_000,
        "start_time": "2025-10-01T15:00:00Z",
        "duration": "1day",
        "gig_type": "like",
        "platform": "farcaster",
        "url": CAST,
        "how_to_earn": RULES[GigType.LIKE].how_to_earn,
        "earning_criteria": RULES[GigType.LIKE].earning_criteria,
        "keyword": "$DEGEN",
        "token_contract": None,
        "token_amount_needed": None,
        "verifier": None,
    }


def test_terms_do_not_change() -> None:
    with pytest.raises(ValidationError):
        terms_of().chain = "narnia"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("chain", "Invalid chain"),
        ("token_address", "Invalid token address"),
        ("amount", "Invalid amount"),
        ("start_time", "Invalid start time"),
        ("duration", "Invalid duration"),
        ("gig_type", "Invalid gig type"),
    ],
)
@pytest.mark.parametrize("absent", [None, ""])
def test_what_every_gig_needs_may_not_be_absent(field: str, problem: str, absent: object) -> None:
    body = body_of()
    del body[field]
    for incomplete in (body, body | {field: absent}):
        assert read_terms(incomplete, LIMITS, NOW) == Draft(None, (problem,))


@pytest.mark.parametrize(
    ("gig_type", "field", "problem"),
    [
        ("like", "url", "URL required for like tasks"),
        ("recast", "url", "URL required for recast tasks"),
        ("boost", "url", "URL required for boost tasks"),
        ("follow", "url", "URL required for follow tasks"),
        ("custom_bounty", "how_to_earn", "how_to_earn required for custom_bounty tasks"),
        ("hold_erc20", "token_contract", "token_contract required for hold_erc20 tasks"),
        ("hold_erc20", "token_amount_needed", "token_amount_needed required for hold_erc20 tasks"),
        ("buy_erc20", "token_contract", "token_contract required for buy_erc20 tasks"),
        ("buy_erc20", "token_amount_needed", "token_amount_needed required for buy_erc20 tasks"),
    ],
)
@pytest.mark.parametrize("absent", [None, ""])
def test_what_a_type_needs_may_not_be_absent(gig_type: str, field: str, problem: str, absent: object) -> None:
    assert read(gig_type, **{field: absent}) == Draft(None, (problem,))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("chain", "Base", "Invalid chain"),
        ("chain", "narnia", "Invalid chain"),
        ("chain", 8453, "Invalid chain"),
        ("token_address", "0x1234", "Invalid token address"),
        ("token_address", USDC + "0", "Invalid token address"),
        ("token_address", f" {USDC}", "Invalid token address"),
        ("token_address", f"{USDC}\n", "Invalid token address"),
        ("duration", "1week", "Invalid duration"),
        ("duration", "1 day", "Invalid duration"),
        ("duration", 86400, "Invalid duration"),
        ("gig_type", "Mention", "Invalid gig type"),
        ("gig_type", "tip", "Invalid gig type"),
        ("platform", "tiktok", "Invalid platform"),
        ("platform", "onchain", "Platform onchain is only for hold_erc20 and buy_erc20 tasks"),
        ("token_contract", "DEGEN", "Invalid token contract"),
        ("token_amount_needed", 0, "Invalid token amount needed"),
        ("token_amount_needed", Decimal("0.0000001"), "Invalid token amount needed"),
        ("keywrod", "gm", "Unknown field: keywrod"),
    ],
)
def test_a_broken_shape_leaves_no_terms(field: str, value: object, problem: str) -> None:
    assert read(**{field: value}) == Draft(None, (problem,))


ODD_VALUES = [True, False, 0, [], ["base"], {}, {"a": 1}, Decimal("1.5"), 1.5, 10**5000]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: str(type(value)))
@pytest.mark.parametrize("field", [name for name in Terms.model_fields if name != "amount_units"])
def test_values_of_the_wrong_kind_are_problems_and_not_exceptions(field: str, value: object) -> None:
    draft = read(**{field: value})
    if field == "token_amount_needed" and value == Decimal("1.5") and isinstance(value, Decimal):
        assert draft.problems == ()
    else:
        assert draft.terms is None
        assert draft.problems[0].startswith("Invalid ")


@pytest.mark.parametrize("chain", ["ethereum", "base-sepolia", "polygon", "arbitrum", "optimism", "solana", "degen"])
def test_a_chain_we_know_but_do_not_serve_is_not_found(chain: str) -> None:
    with pytest.raises(NotFound) as caught:
        read_terms({"chain": chain, "amount": "nonsense"}, LIMITS, NOW)
    assert caught.value.detail == "Chain not found"


def test_the_served_chain_is_a_setting() -> None:
    sepolia = Limits(10_000_000, 1_000_000_000_000, USDC, chain="base-sepolia")
    assert read_terms(body_of(chain="base-sepolia"), sepolia, NOW).problems == ()
    with pytest.raises(NotFound):
        read_terms(body_of(chain="base"), sepolia, NOW)
    check_chain("base", "base")
    check_chain(["base"], "base-sepolia")


@pytest.mark.parametrize(
    "amount",
    [
        "10",
        10,
        Decimal("10.0"),
        Decimal("1e1"),
        Decimal("0.1E+2"),
        "10.000000",
        "10.0000000",
        "0010",
        Decimal("1000e-2"),
    ],
)
def test_ten_may_be_spelled_in_many_ways(amount: object) -> None:
    assert terms_of(amount=amount) == terms_of(amount=10)


@pytest.mark.parametrize(
    "amount",
    [
        *(
            True,
            "1e3",
            "+10",
            "-10",
            -10,
            " 10",
            "10 ",
            "10\n",
            "10,5",
            ".5",
            "10.",
            "0x10",
            "1_000",
            "ten",
            "\u0663\u0663",
        ),
        *("NaN", "Infinity", Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("-Infinity"), 10.0),
        *(Decimal("10.0000001"), "10.0000001", Decimal("1e-7"), Decimal("1e999999999"), Decimal("1e-999999999")),
        *("9" * 100_000, 10**4000, -(10**4000), Decimal("9" * 100_000), [10], {"value": 10}),
    ],
    ids=lambda amount: str(amount)[:20] if not isinstance(amount, int) else f"int of {amount.bit_length()} bits",
)
def test_what_is_no_amount_is_refused(amount: object) -> None:
    # Of this process: others may be at work on the machine.
    began = time.process_time()
    assert problems(amount=amount) == ["Invalid amount"]
    assert problems("hold_erc20", token_amount_needed=amount) == ["Invalid token amount needed"]
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"amount": Decimal("9.999999")}, "Minimum amount is 10"),
        ({"amount": 0}, "Minimum amount is 10"),
        ({"amount": Decimal("1000000.000001")}, "Maximum amount is 1000000"),
        ({"amount": Decimal("1e30")}, "Maximum amount is 1000000"),
        ({"start_time": "2026-10-01T12:00:01Z"}, "Invalid start time"),
        ({"start_time": "9999-12-31T23:59:59Z"}, "Invalid start time"),
        ({"token_address": DEGEN}, "Only USDC is supported"),
    ],
)
def test_broken_limits_leave_the_terms(fields: dict[str, Any], problem: str) -> None:
    draft = read(**fields)
    assert draft.problems == (problem,)
    assert draft.terms is not None


@pytest.mark.parametrize("amount", [10, 1_000_000])
def test_limits_include_their_ends(amount: int) -> None:
    year_ahead = (NOW + timedelta(days=365)).isoformat()
    assert problems(amount=amount, start_time=year_ahead) == []


def test_limits_are_figures_of_the_operator() -> None:
    limits = Limits(minimum_units=20_500_000, maximum_units=30_000_000, token_address=DEGEN)
    assert read_terms(body_of(token_address=DEGEN), limits, NOW).problems == ("Minimum amount is 20.5",)
    assert read_terms(body_of(token_address=DEGEN, amount=31), limits, NOW).problems == ("Maximum amount is 30",)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-10-01T15:00:00Z", datetime(2025, 10, 1, 15, tzinfo=UTC)),
        ("2025-10-01T15:00:00.250Z", datetime(2025, 10, 1, 15, 0, 0, 250_000, tzinfo=UTC)),
        ("2025-10-01T17:00:00+02:00", datetime(2025, 10, 1, 15, tzinfo=UTC)),
        ("2025-10-01T10:30:00-0430", datetime(2025, 10, 1, 15, tzinfo=UTC)),
        ("2025-10-01T15:00:00", datetime(2025, 10, 1, 15, tzinfo=UTC)),
        ("2025-10-01 15:00", datetime(2025, 10, 1, 15, tzinfo=UTC)),
        ("20251001T150000Z", datetime(2025, 10, 1, 15, tzinfo=UTC)),
        ("2025-10-01", datetime(2025, 10, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_start_time_is_kept_in_utc(text: str, moment: datetime) -> None:
    terms = terms_of(start_time=text)
    assert terms.start_time == moment
    assert terms.start_time.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    [
        *("now", "2025-13-01T00:00:00Z", "2025-02-30", "2025-10-01T25:00:00Z", "2025-10-01T15:00:60Z", "15:00"),
        *("1759330800", "1712120112345", "2025-10-01x15:00", " 2025-10-01", "2025-10-01T15:00:00Z\n", "2025-10-01T"),
        *(
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "0000-01-01",
            "12025-01-01",
            "2025-10-01T15:00+24:00",
        ),
        *("2025-10-0\u0661", "2025-10-01T15:00:00 Z", 1_759_330_800, Decimal("1759330800.5"), True),
    ],
)
def test_what_is_no_start_time_is_refused(text: object) -> None:
    assert read(start_time=text) == Draft(None, ("Invalid start time",))


HASH_40 = "0x" + "ab" * 20


@pytest.mark.parametrize(
    ("gig_type", "platform", "url", "stored"),
    [
        ("like", "farcaster", CAST, CAST),
        ("like", "farcaster", f"{ALICE}/{HASH_40}", f"{ALICE}/{HASH_40}"),
        ("like", "farcaster", f"{ALICE}/0xABCDEF12/?utm=1#top", f"{ALICE}/0xabcdef12"),
        ("like", "farcaster", "HTTPS://WWW.Warpcast.com/alice.eth/0x12345678", "https://www.warpcast.com/alice.eth/0x12345678"),
        ("recast", "farcaster", "https://farcaster.xyz/!123/0x12345678", "https://farcaster.xyz/!123/0x12345678"),
        ("boost", "x", "https://mobile.twitter.com/a_b/status/20?s=20", "https://mobile.twitter.com/a_b/status/20"),
        ("like", "x", TWEET + "/", TWEET),
        ("follow", "farcaster", ALICE + "/", ALICE),
        ("follow", "x", "https://x.com/Alice?lang=en", "https://x.com/Alice"),
        ("mention", "farcaster", CAST, CAST),
        ("mention", "x", "https://x.com/alice", "https://x.com/alice"),
        ("hold_erc20", "x", TWEET, TWEET),
        ("hold_erc20", "onchain", "https://example.com/token/", "https://example.com/token"),
        ("buy_erc20", "onchain", CAST + "?a=b", CAST),
        ("custom_bounty", "farcaster", "http://example.com:8080/form?id=5", "http://example.com:8080/form?id=5"),
        ("custom_bounty", "farcaster", "https://EXAMPLE.com", "https://example.com"),
        ("custom_bounty", "x", CAST + "/", CAST),
    ],
)  # fmt: skip
def test_a_url_has_one_normal_form(gig_type: str, platform: str, url: str, stored: str) -> None:
    assert terms_of(gig_type, platform=platform, url=url).url == stored


@pytest.mark.parametrize(
    ("gig_type", "platform", "url"),
    [
        ("like", "farcaster", ALICE),
        ("like", "farcaster", TWEET),
        ("like", "farcaster", "http://farcaster.xyz/alice/0x12345678"),
        ("like", "farcaster", "https://farcaster.xyz:443/alice/0x12345678"),
        ("like", "farcaster", "https://farcaster.xyz@evil.com/alice/0x12345678"),
        ("like", "farcaster", "https://me@farcaster.xyz/alice/0x12345678"),
        ("like", "farcaster", "https://farcaster.xyz.evil.com/alice/0x12345678"),
        ("like", "farcaster", "https://evilfarcaster.xyz/alice/0x12345678"),
        ("like", "farcaster", "https://farcaster.xyz/alice/0x1234567"),
        ("like", "farcaster", f"{ALICE}/{HASH_40}a"),
        ("like", "farcaster", f"{ALICE}/0x1234567g"),
        ("like", "farcaster", f"{CAST}/replies"),
        ("like", "farcaster", f" {CAST}"),
        ("like", "farcaster", f"{CAST}\n"),
        ("like", "farcaster", f"{CAST}\x00"),
        ("like", "farcaster", f"{CAST}?q=\ud800"),
        ("like", "farcaster", 5),
        ("boost", "x", CAST),
        ("boost", "x", "https://x.com/alice/status/12a"),
        ("boost", "x", "https://x.com/alice/status/"),
        ("boost", "x", "https://x.com/alice/status/\u0663"),
        ("follow", "farcaster", CAST),
        ("follow", "x", TWEET),
        ("follow", "farcaster", "https://farcaster.xyz/"),
        ("follow", "farcaster", "https://farcaster.xyz/~/settings"),
        ("mention", "farcaster", "https://example.com/alice"),
        ("mention", "x", CAST),
        ("hold_erc20", "farcaster", TWEET),
        ("hold_erc20", "onchain", "ftp://example.com"),
        ("custom_bounty", "farcaster", "javascript:alert(1)"),
        ("custom_bounty", "farcaster", "example.com"),
        ("custom_bounty", "farcaster", "https://"),
        ("custom_bounty", "farcaster", "https:///example.com"),
        ("custom_bounty", "farcaster", r"https:\\example.com"),
        ("custom_bounty", "farcaster", "https://example.com:99999"),
        ("custom_bounty", "farcaster", "https://example.com/a b"),
    ],
)
def test_a_url_of_the_wrong_kind_is_refused(gig_type: str, platform: str, url: object) -> None:
    problem = f"Invalid URL for {platform} {gig_type} tasks"
    assert read(gig_type, platform=platform, url=url) == Draft(None, (problem,))


@pytest.mark.parametrize(
    ("field", "size"), [("how_to_earn", 2000), ("earning_criteria", 2000), ("keyword", 100), ("verifier", 100)]
)
def test_the_length_of_texts_is_bounded(field: str, size: int) -> None:
    assert getattr(terms_of(**{field: "ü" * size}), field) == "ü" * size
    assert problems(**{field: "ü" * (size + 1)}) == [f"{field} is too long"]


def test_the_length_of_urls_is_bounded() -> None:
    assert problems("like", url=f"{CAST}?{'a' * (499 - len(CAST))}") == []
    assert problems("like", url=f"{CAST}?{'a' * (500 - len(CAST))}") == ["url is too long"]


@pytest.mark.parametrize("field", ["how_to_earn", "earning_criteria", "keyword", "verifier"])
@pytest.mark.parametrize("text", ["a\x00", "\x1b[31m", "a\x7f", "a\x85", "\ud83d", "\udc00b", "  ", 5, ["a"]])
def test_what_cannot_be_shown_is_no_text(field: str, text: object) -> None:
    assert problems(**{field: text}) == [f"Invalid {field}"]


@pytest.mark.parametrize("text", ["$DEGEN", "日本語", "👩\u200d🚀 gm", "שלום", "'; DROP TABLE gigs; --", "<b>"])
def test_text_of_any_script_is_kept_as_it_is(text: str) -> None:
    terms = terms_of(keyword=text, how_to_earn=f"{text}\r\n\t{text}")
    assert (terms.keyword, terms.how_to_earn) == (text, f"{text}\r\n\t{text}")


def test_only_the_long_texts_have_lines() -> None:
    assert problems(keyword="a\nb", verifier="a\tb", how_to_earn="a\nb") == ["Invalid keyword", "Invalid verifier"]


def test_every_problem_is_listed_in_the_order_of_the_fields() -> None:
    body = {
        "keywrod": 1,
        **{"verifier": 1, "token_amount_needed": 1.5, "token_contract": 1, "keyword": "k" * 101, "earning_criteria": 1},
        **{"url": "x", "platform": "onchain", "gig_type": "like", "duration": 1, "start_time": "2030-01-01"},
        **{"amount": 1, "token_address": DEGEN, "chain": 1, "how_to_earn": 1, "amuont": 1},
    }
    assert read_terms(body, LIMITS, NOW).problems == (
        *("Invalid chain", "Only USDC is supported", "Minimum amount is 10", "Invalid start time", "Invalid duration"),
        "Platform onchain is only for hold_erc20 and buy_erc20 tasks",
        *("Invalid URL for onchain like tasks", "Invalid how_to_earn", "Invalid earning_criteria"),
        *("keyword is too long", "Invalid token contract", "Invalid token amount needed", "Invalid verifier"),
        *("Unknown field: keywrod", "Unknown field: amuont"),
    )


def test_a_type_we_do_not_know_hides_no_other_problem() -> None:
    expected = ["Invalid gig type", "Invalid platform", "Invalid url", "Invalid keyword"]
    assert problems("tip", platform="tiktok", url="x", keyword=1) == expected


def test_unknown_fields_are_echoed_safely_and_once() -> None:
    body = body_of() | {"a" * 5000: 1, "a" * 5001: 2, "\x1b[31m\ud800\u202e": 3, "nothing": None}
    assert read_terms(body, LIMITS, NOW).problems == (f"Unknown field: {'a' * 100}", "Unknown field: ?[31m??")


def test_what_json_spells_otherwise_gives_the_same_terms() -> None:
    text = json.dumps(body_of("hold_erc20")).replace('"amount": 10', '"amount": 1.0e1')
    draft = read_terms(json.loads(text, parse_float=Decimal), LIMITS, NOW)
    assert draft == read("hold_erc20", platform="onchain", token_amount_needed="5.000", token_contract=DEGEN.lower())


WEI = KeyLimits(TokenInfo(DEGEN.lower(), "DEGEN", 18), maximum_tokens=1_000_000)


def read_with_key(limits: KeyLimits = WEI, /, **fields: Any) -> Draft:
    return read_terms(body_of(token_address=DEGEN, **fields), limits, NOW)


@pytest.mark.parametrize("duration", Duration)
def test_with_a_key_gigs_run_up_to_half_a_year(duration: Duration) -> None:
    terms = read_with_key(duration=str(duration)).terms
    assert terms is not None
    assert terms.duration is duration


@pytest.mark.parametrize(
    ("decimals", "amount", "units"), [(18, "0.000000000000000001", 1), (0, 3, 3), (6, "1.5", 1500000)]
)
def test_with_a_key_amounts_have_the_decimals_of_their_token(decimals: int, amount: object, units: int) -> None:
    limits = KeyLimits(TokenInfo(DEGEN.lower(), "ODD", decimals), 1_000_000)
    terms = read_with_key(limits, amount=amount).terms
    assert terms is not None
    assert (terms.token_address, terms.amount_units) == (DEGEN.lower(), units)


@pytest.mark.parametrize(
    ("amount", "problem"),
    [
        *((0, "Invalid amount"), (Decimal("1e-19"), "Invalid amount"), (2**256, "Invalid amount")),
        *(
            (1_000_001, "Maximum amount is 1000000"),
            (Decimal("1000000.000000000000000001"), "Maximum amount is 1000000"),
        ),
    ],
)
def test_with_a_key_amounts_have_limits_too(amount: object, problem: str) -> None:
    assert read_with_key(amount=amount).problems == (problem,)


def test_a_token_that_is_none_hides_no_other_problem() -> None:
    nothing = KeyLimits(token=None, maximum_tokens=1_000_000)
    problems = read_with_key(nothing, amount=Decimal("1e-19"), duration="1year").problems
    assert problems == ("Invalid token address", "Invalid amount", "Invalid duration")


@pytest.mark.parametrize(("given", "token"), [(DEGEN, DEGEN.lower()), ("DEGEN", None), (5, None), (None, None)])
def test_the_token_is_known_before_the_rest_is_read(given: object, token: str | None) -> None:
    assert token_of({"token_address": given}) == token


NOTHINGS: list[dict[str, Any]] = [{}, {"keyword": None, "verifier": ""}, {"keyword": "", "url": None}, {"platform": ""}]


@st.composite
def retold(draw: st.DrawFn, gig_type: str) -> dict[str, Any]:
    """A body that says what `body_of(gig_type)` says, in other words."""
    spelled = {
        "amount": draw(st.sampled_from([10, Decimal("10.00"), "10", "10.0", Decimal("1e1")])),
        "token_address": draw(st.sampled_from([USDC, USDC.lower(), USDC.upper()])),
        "start_time": draw(st.sampled_from(["2025-10-01T15:00:00.000Z", "2025-10-01T15:00", "2025-10-01T16:00+01:00"])),
    }
    if "url" in EXTRAS[gig_type]:
        spelled["url"] = EXTRAS[gig_type]["url"] + draw(st.sampled_from(["", "/", "?a=1", "#a", "/?a=1#b"]))
    if "token_contract" in EXTRAS[gig_type]:
        spelled |= {
            "token_contract": DEGEN.lower(),
            "token_amount_needed": draw(st.sampled_from(["5", Decimal("5.0")])),
        }
    body = draw(st.sampled_from(NOTHINGS)) | body_of(gig_type, **spelled)
    return dict(draw(st.permutations(list(body.items()))))


@given(st.data(), st.sampled_from(list(EXTRAS)))
def test_equal_meanings_give_equal_terms(data: st.DataObject, gig_type: str) -> None:
    draft = read_terms(data.draw(retold(gig_type)), LIMITS, NOW)
    assert (draft.terms, draft.problems) == (terms_of(gig_type), ())


HARD_VALUES = [10**4000, Decimal("1e999999999"), USDC, CAST, "base", "ethereum", "onchain", "x", "custom_bounty"]
HARD_TEXTS = st.text(st.characters(categories=["Cs", "Cc", "Nd"]), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.decimals() | st.text() | HARD_TEXTS | st.sampled_from(HARD_VALUES)
)
JSON_VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
NAMES = st.sampled_from([name.removesuffix("_units") for name in Terms.model_fields]) | st.text()


@settings(max_examples=200)
@given(st.sampled_from(list(EXTRAS)), st.dictionaries(NAMES, JSON_VALUES, max_size=4))
def test_no_json_raises_anything_but_not_found(gig_type: str, changes: Mapping[str, object]) -> None:
    with contextlib.suppress(NotFound):
        draft = read_terms({**body_of(gig_type), **changes}, LIMITS, NOW)
        assert draft.terms is not None or draft.problems
        assert len(set(draft.problems)) == len(draft.problems)
        assert all(problem.isprintable() for problem in draft.problems)


@settings(max_examples=200)
@given(
    st.sampled_from([Limits, KeyLimits]),
    st.sampled_from(list(EXTRAS)),
    st.dictionaries(st.sampled_from(list(KeyedGigRequest.model_fields)), JSON_VALUES, max_size=4),
)
def test_pydantic_reads_a_request_as_we_do(limits: type, gig_type: str, changes: Mapping[str, object]) -> None:
    """The models describe the API, and their validators are called without it."""
    rules = LIMITS if limits is Limits else WEI
    body = {**body_of(gig_type), **changes}
    given_fields = {name: value for name, value in body.items() if value is not None and value != ""}
    ours, theirs = Reading(rules, NOW), Reading(rules, NOW)
    request, _ = read_request(body, ours)
    try:
        model = rules.request.model_validate(given_fields, context=theirs)
    except ValidationError:
        assert request is None
    else:
        assert request == (None if theirs.is_broken else dict(model))
    assert (ours.noted, ours.is_broken) == (theirs.noted, theirs.is_broken)


@given(
    st.sampled_from(list(EXTRAS)),
    st.datetimes(timezones=st.just(UTC)),
    st.decimals(0, 10**60, places=6),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=100),
)
def test_terms_survive_the_ledger(gig_type: str, start_time: datetime, amount: Decimal, text: str) -> None:
    fields = {
        "amount": amount,
        "start_time": start_time.isoformat(),
        "how_to_earn": text + "!",
        "keyword": text.strip(),
    }
    terms = read(gig_type, **fields).terms
    assert terms is not None
    stored = json.dumps(terms.model_dump(mode="json"))
    again = Terms.model_validate(json.loads(stored))
    assert again == terms
    assert json.dumps(again.model_dump(mode="json")) == stored
