"""What hostile buyers do: purchases that share one transaction, and strangers who act at a chosen moment beside it."""

import http.client
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from tests.support.harness import CREATE, USDC, Chain, Dev, Json, bytecode, encode, gig_terms, payload_v2, sign, until

PRICE = 11_000_000
STRANGER = "0x" + "5a" * 20
GWEI = 10**9
# Anvil fills a block in the order of what a transaction offers at the most for its gas.
FIRST, LAST = 100 * GWEI, 0


def calldata(signature: str, *values: Any) -> str:
    types = signature[signature.index("(") + 1 : -1].split(",")
    return "0x" + (keccak(text=signature)[:4] + abi_encode(types, values)).hex()


def transfer_call(message: Json, signature: str) -> str:
    """Calldata by which anybody may execute an authorization."""
    return calldata(
        "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
        message["from"],
        message["to"],
        *(int(message[name]) for name in ("value", "validAfter", "validBefore")),
        bytes.fromhex(message["nonce"][2:]),
        bytes.fromhex(signature[2:]),
    )


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Json:
        return dict(json.loads(self.text))

    @property
    def transaction(self) -> str:
        """The deposit's; fails when there is no gig."""
        assert self.status == 200, self.text
        return str(self.json["payment"]["transaction"])


class Post:
    """A request that is on its way; its answer is fetched later."""

    def __init__(self, shop: Dev, terms: Json, headers: Json) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(shop.url).netloc, timeout=90)
        self._connection.request("POST", CREATE, json.dumps(terms), headers)

    def answer(self) -> Answer:
        response = self._connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode())
        self._connection.close()
        return answer

    def hang_up(self) -> None:
        self._connection.close()


@dataclass(eq=False)
class Purchase:
    """Terms and a signed payment of `payer`, by default the signer's own account."""

    shop: Dev
    signer: LocalAccount
    payer: str = ""
    changes: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.payer = self.payer or self.signer.address
        self.terms = gig_terms()
        self.requirements = self.shop.quote(self.terms)
        self.sign_anew()

    def sign_anew(self) -> None:
        self.payload = payload_v2(self.signer, self.requirements, **{"from": self.payer, **self.changes})

    @property
    def message(self) -> Json:
        return dict(self.payload["payload"]["authorization"])

    @property
    def signature(self) -> str:
        return str(self.payload["payload"]["signature"])

    @property
    def header(self) -> Json:
        return {"PAYMENT-SIGNATURE": encode(self.payload)}

    def is_in(self, data: str) -> bool:
        """Is it in this calldata?"""
        return str(self.message["nonce"][2:]) in data

    def post(self) -> Post:
        return Post(self.shop, self.terms, self.header)

    def pay(self) -> Answer:
        return self.post().answer()

    def pay_until(self, status: int) -> Answer:
        """Repeat the same payment until that is the answer; meanwhile nothing but "not known yet" is said."""

        def asked() -> Answer | None:
            answer = self.pay()
            assert answer.status in (status, 503), answer.text
            return answer if answer.status == status else None

        found: Answer = until(asked)
        return found

    @property
    def transfer(self) -> str:
        return transfer_call(self.message, self.signature)

    @property
    def cancellation(self) -> str:
        """Calldata that takes the authorization back."""
        nonce = bytes.fromhex(self.message["nonce"][2:])
        signed = self.signer.sign_typed_data(
            {**self.requirements["extra"], "chainId": 8453, "verifyingContract": USDC},
            {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]},
            {"authorizer": self.payer, "nonce": nonce},
        )
        return calldata("cancelAuthorization(address,bytes32,bytes)", self.payer, nonce, bytes(signed.signature))


def buyer(shop: Dev, units: int = PRICE, **changes: Any) -> Purchase:
    """A purchase of a fresh account that holds just enough."""
    return Purchase(shop, shop.buyer(units), changes=changes)


def other_authorization(purchase: Purchase, **changes: Any) -> tuple[Json, str]:
    """Another authorization of the same payer, by default with the same nonce, and its signature."""
    message = purchase.message | changes
    return message, sign(purchase.signer, purchase.requirements, message)


# What strangers send.


def submit(chain: Chain, sender: str, to: str | None, data: str, fee: int = FIRST, gas: int = 3_000_000) -> str:
    """Put a transaction of an impersonated account into the pool, before or behind ours; its hash."""
    chain.rpc("anvil_setBalance", sender, hex(10**20))
    chain.rpc("anvil_impersonateAccount", sender)
    base_fee = int(chain.rpc("eth_getBlockByNumber", "pending", False)["baseFeePerGas"], 16)
    fees = {"maxFeePerGas": hex(max(fee, base_fee)), "maxPriorityFeePerGas": "0x0"}
    return str(chain.rpc("eth_sendTransaction", {"from": sender, "to": to, "data": data, "gas": hex(gas), **fees}))


def receipt(chain: Chain, transaction: str) -> Json:
    return dict(until(lambda: chain.rpc("eth_getTransactionReceipt", transaction)))


def succeeded(chain: Chain, transaction: str) -> bool:
    return bool(receipt(chain, transaction)["status"] == "0x1")


def execute(chain: Chain, data: str) -> str:
    """A stranger's call of the token, mined and successful; the transaction's hash."""
    sent = submit(chain, STRANGER, USDC, data)
    assert succeeded(chain, sent)
    return sent


def move_away(shop: Dev, payer: str, fee: int = FIRST) -> str:
    """The payer sends all of the money elsewhere."""
    return submit(shop, payer, USDC, calldata("transfer(address,uint256)", "0x" + "77" * 20, shop.usdc(payer)), fee)


def deploy(chain: Chain, name: str, *arguments: str) -> str:
    """One of the wallets of contracts/test, with addresses as constructor arguments; its address."""
    words = abi_encode(["address"] * len(arguments), arguments).hex()
    return str(chain.send(STRANGER, None, bytecode(name) + words)["contractAddress"])


def wallet(shop: Dev, name: str, owner: LocalAccount | None = None, units: int = PRICE) -> Purchase:
    """A purchase of a contract wallet that holds just enough; the owner signs for it."""
    owner = owner or Account.create()
    address = deploy(shop, name, *([owner.address] if name in ("Wallet1271", "HeavyWallet") else []))
    shop.give_usdc(address, units)
    return Purchase(shop, owner, address)


def become(shop: Dev, turncoat: str, model: str, fee: int = FIRST) -> str:
    return submit(shop, STRANGER, turncoat, calldata("become(address)", model), fee)


def delegate(chain: Chain, account: LocalAccount, code: str) -> str:
    """An EIP-7702 transaction, paid by somebody else, that gives the account the code at `code`; its hash."""
    sponsor = Account.create()
    chain.rpc("anvil_setBalance", sponsor.address, hex(10**20))
    nonce = int(chain.rpc("eth_getTransactionCount", account.address, "latest"), 16)
    signed = account.sign_authorization({"chainId": 8453, "address": bytes.fromhex(code[2:]), "nonce": nonce})
    transaction = {
        "type": 4,
        "chainId": 8453,
        "nonce": 0,
        "to": sponsor.address,
        "value": 0,
        "gas": 200_000,
        "maxFeePerGas": FIRST,
        "maxPriorityFeePerGas": 0,
        "authorizationList": [signed],
    }
    raw = sponsor.sign_transaction(transaction).raw_transaction
    return str(chain.rpc("eth_sendRawTransaction", "0x" + bytes(raw).hex()))


# Purchases that share a transaction.

MINED = "mined"


class Batch:
    """Purchases that go out in one transaction: they queue behind a payment that keeps the only relayer busy.

    `posts` are in the order of the purchases.
    """

    def __init__(self, shop: Dev, purchases: Sequence[Purchase]) -> None:
        self.shop = shop
        while not self._keep_busy():
            pass
        self._purchases = list(purchases)
        self.posts = [purchase.post() for purchase in purchases]
        for _ in range(10):
            # A question over a new connection is heard after all that came before it.
            http_get(shop, "/api/gigs/999999")

    def _keep_busy(self) -> bool:
        """Have the only relayer wait for a block; False when the payment slipped into one that was made for others."""
        blocker = buyer(self.shop)
        self._blocker = blocker.post()
        self._relayer = until(lambda: self._carrier(blocker) or (self.shop.usdc(blocker.payer) < PRICE and MINED))
        return bool(self._relayer != MINED)

    def _carrier(self, blocker: Purchase) -> str:
        """Who has sent it, once it is alone in the pool; what was on its way before is mined."""
        waiting = pool(self.shop).values()
        if any(not blocker.is_in(transaction["input"]) for transaction in waiting):
            self.shop.rpc("evm_mine")
        senders = [transaction["from"] for transaction in waiting if blocker.is_in(transaction["input"])]
        return str(senders[0]) if len(waiting) == len(senders) == 1 else ""

    def send(self, *left_out: Purchase) -> str:
        """Let the first payment settle, so that the batch is simulated and in the pool; its transaction's hash.

        It carries every purchase that is not `left_out`.
        """
        [blocker] = self._sent()
        self.shop.rpc("evm_mine")
        [sent] = until(lambda: [sent for sent in self._sent() if sent["hash"] != blocker["hash"]])
        assert self._blocker.answer().status == 200
        carried = [purchase for purchase in self._purchases if purchase.is_in(sent["input"])]
        assert carried == [purchase for purchase in self._purchases if purchase not in left_out]
        return str(sent["hash"])

    def _sent(self) -> list[Json]:
        """Of the pool, what is the shop's; strangers may act at the same time."""
        return [transaction for transaction in pool(self.shop).values() if transaction["from"] == self._relayer]

    def mine(self) -> list[Answer]:
        """Mine the batch, and go on with a block for each transaction; the answers."""
        self.mine_all()
        return [post.answer() for post in self.posts]

    def mine_all(self) -> None:
        self.shop.rpc("evm_mine")
        self.shop.rpc("evm_setAutomine", True)


@contextmanager
def batch(shop: Dev, *purchases: Purchase) -> Iterator[Batch]:
    """Queue the purchases; the chain makes no blocks until `mine`."""
    shop.rpc("evm_setAutomine", False)
    waiting = None
    try:
        waiting = Batch(shop, purchases)
        yield waiting
    finally:
        shop.rpc("evm_setAutomine", True)
        shop.rpc("evm_mine")


def http_get(shop: Dev, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(shop.url).netloc, timeout=30)
    connection.request("GET", path)
    connection.getresponse().read()
    connection.close()


def pool(chain: Chain) -> dict[str, Json]:
    """The transactions that wait for a block, by hash."""
    content = chain.rpc("txpool_content")["pending"]
    return {t["hash"]: t for transactions in content.values() for t in transactions.values()}


def inner_calls(transaction: Json) -> list[str]:
    """What a funding transaction has the token do, as anybody can read it in the pool."""
    types = ["uint256", "bytes32", "address", "uint256", "bytes[]"]
    return ["0x" + call.hex() for call in abi_decode(types, bytes.fromhex(transaction["input"][10:]))[4]]


def payload_of(call: str) -> Json:
    """The inside of a payment header, made of a call that anybody can read on chain."""
    types = ["address", "address", "uint256", "uint256", "uint256", "bytes32", "uint8", "bytes32", "bytes32"]
    payer, payee, value, after, before, nonce, v, r, s = abi_decode(types, bytes.fromhex(call[10:]))
    message = {"from": payer, "to": payee, "nonce": "0x" + nonce.hex()}
    message |= {"value": str(value), "validAfter": str(after), "validBefore": str(before)}
    return {"signature": "0x" + (r + s + bytes([v])).hex(), "authorization": message}


def random_nonce() -> str:
    return "0x" + secrets.token_hex(32)
