from hypothesis import given
from hypothesis import strategies as st

from x402_gig.relaying.fees import Fees, outbid

WEI = st.integers(1, 10**12)


@given(st.builds(Fees, WEI, WEI), st.builds(Fees, WEI, WEI))
def test_a_replacement_is_an_eighth_higher_in_both_fees_and_never_below_the_market(old: Fees, now: Fees) -> None:
    better = outbid(old, now)
    assert better.max_fee * 8 >= old.max_fee * 9
    assert better.priority_fee * 8 >= old.priority_fee * 9
    assert better.max_fee >= now.max_fee
    assert better.priority_fee >= now.priority_fee
