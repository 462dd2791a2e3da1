"""What an operator's tools read: metrics, and logs in which a payment can be followed."""

import json
import re
from pathlib import Path

import pytest

from tests.support.harness import Dev, devnet, gig_terms, payment_header, running, serve_settings, until


def test_a_payment_can_be_followed_in_logs_and_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        devnet() as chain,
        running("serve", env=serve_settings(chain, tmp_path), cwd=tmp_path) as (_, line),
    ):
        shop = Dev(chain.rpc_url, url=line["url"])
        poor, buyer, terms = shop.buyer(0), shop.buyer(11_000_000), gig_terms()
        assert shop.post(terms, payment_header(poor, shop.quote(terms))).status_code == 402
        answer = shop.post(terms, payment_header(buyer, shop.quote(terms)))
        assert answer.status_code == 200
        shop.funded(answer.json()["gig_id"])

        text = until(lambda: (t := shop.http.get(shop.url + "/metrics").text) and "relayer_balance" in t and t)

    # Name, labels and value, as Prometheus's parser has them.
    values = dict(re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE))
    assert values['x402_gig_payments_total{outcome="settled",reason=""}'] == "1.0"
    assert values['x402_gig_payments_total{outcome="rejected",reason="insufficient_funds"}'] == "1.0"
    assert values["x402_gig_settlement_seconds_count"] == "1.0"
    assert values['x402_gig_slots_total{purpose="deposit",state="mined"}'] == "1.0"
    assert values['x402_gig_batch_size_sum{purpose="deposit"}'] == "1.0"
    assert float(values['x402_gig_gas_per_transfer_sum{purpose="deposit"}']) > 40_000
    assert values['x402_gig_journal{state="payments_open"}'] == "0.0"
    assert values["x402_gig_oldest_open_seconds"] == "0.0"
    assert len([name for name in values if name.startswith("x402_gig_relayer_balance_ether")]) == 2

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    life = [line["message"] for line in lines if line.get("payment_id") == 1]
    assert [message.split()[2] for message in life][:2] == ["written", "settled"]
    assert " ".join(life[2:]).count("moved on") == len(life[2:])
    assert {word for message in life[2:] for word in message.split()} >= {"reward", "commission"}
    # Nothing is said of a payment without its number.
    assert [line for line in lines if "payment 1" in line["message"] and "payment_id" not in line] == []
