import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402_gig.errors import ValidationFailed
from x402_gig.gigs.catalogue import GigType, Platform
from x402_gig.gigs.listing import MAX_ID, GigQuery, read_query

ADDRESS = "0x" + "aB" * 20


def problems(*parameters: tuple[str, str]) -> list[str]:
    with pytest.raises(ValidationFailed) as caught:
        read_query(parameters)
    return caught.value.details


def test_without_parameters_it_is_the_first_hundred_active_gigs() -> None:
    query = read_query([])
    assert (query.status, query.platforms, query.limit, query.cursor) == ("active", (), 100, None)
    assert (query.gig_type, query.token, query.creator) == (None, None, None)


def test_every_parameter_is_read() -> None:
    given_ = {"status": "all", "platforms": "x,onchain", "gig_type": "buy_erc20", "limit": "500", "cursor": "7"}
    assert read_query({**given_, "token": ADDRESS, "creator": ADDRESS.replace("0x", "0X")}.items()) == GigQuery(
        status="all",
        platforms=(Platform.X, Platform.ONCHAIN),
        gig_type=GigType.BUY_ERC20,
        token=ADDRESS.lower(),
        creator=ADDRESS.lower(),
        limit=500,
        cursor=7,
    )


@pytest.mark.parametrize("name", GigQuery.model_fields)
def test_an_empty_value_is_as_good_as_none(name: str) -> None:
    assert read_query([(name, "")]) == GigQuery()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("status", value) for value in ("ACTIVE", "live", "active,ended", " active")],
        *[("platforms", value) for value in ("facebook", "x,", ",", "x, farcaster", "x;farcaster", "X")],
        *[("gig_type", value) for value in ("likes", "like,boost", "Like")],
        *[
            (name, value)
            for name in ("token", "creator")
            for value in ("0x", ADDRESS[:-1], ADDRESS + "\n", ADDRESS[2:])
        ],
        *[("limit", value) for value in ("0", "501", "-1", "+1", "1.0", "1_0", " 1", "1e1", "٣", "true", "9" * 5000)],
        *[("cursor", value) for value in ("0", "-1", "x", str(MAX_ID + 1), "9" * 20)],
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    assert problems((name, value)) == [f"Invalid {name.replace('_', ' ')}"]


@pytest.mark.parametrize(("name", "value"), [("status", "all"), ("platforms", "x"), ("limit", "5"), ("token", ADDRESS)])
def test_nobody_can_tell_which_of_two_was_meant(name: str, value: str) -> None:
    assert problems((name, value), (name, value)) == [f"Invalid {name}"]


def test_every_problem_is_listed_once() -> None:
    wrong = [("colour", "red"), ("limit", "0"), ("platforms", "a,b"), ("status", "x"), ("a\nb", ""), ("z" * 500, "1")]
    assert problems(*wrong) == [
        "Invalid status",
        "Invalid platforms",
        "Invalid limit",
        "Unknown parameter: colour",
        "Unknown parameter: a?b",
        "Unknown parameter: " + "z" * 100,
    ]


@given(st.lists(st.tuples(st.sampled_from([*GigQuery.model_fields, "x"]) | st.text(), st.text())))
def test_whatever_is_asked_is_a_query_or_a_list_of_problems(parameters: list[tuple[str, str]]) -> None:
    try:
        assert 1 <= read_query(parameters).limit <= 500
    except ValidationFailed as exc:
        assert exc.details
