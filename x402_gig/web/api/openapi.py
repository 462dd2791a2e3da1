"""The API's document, OpenAPI 3.1: requests from the models that validate them, prices from the operator's settings."""

import json
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import Any

from msgspec import Struct
from openapi_pydantic import (
    Components,
    Example,
    Header,
    Info,
    MediaType,
    OpenAPI,
    Operation,
    Parameter,
    PathItem,
    RequestBody,
    Response,
    Schema,
    SecurityScheme,
    Server,
    Tag,
)
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel
from x402.http.constants import (
    PAYMENT_REQUIRED_HEADER,
    PAYMENT_RESPONSE_HEADER,
    PAYMENT_SIGNATURE_HEADER,
    X_PAYMENT_HEADER,
    X_PAYMENT_RESPONSE_HEADER,
)

from x402_gig.gigs.catalogue import GigType
from x402_gig.gigs.listing import GigQuery
from x402_gig.gigs.pricing import Price, to_tokens
from x402_gig.gigs.requests import KeyedGigRequest, PaidGigRequest, StartRequest
from x402_gig.gigs.rules import RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.payments.order import Seller
from x402_gig.web.api import answers, examples, keys

Json = dict[str, Any]
Examples = Mapping[str, object]

BUY = "/api/gigs/create/x402"
_KEY = "apiKey"
_WITH_KEY: list[dict[str, list[str]]] = [{_KEY: []}]

_ABOUT = """Gigs are created in one of two ways:

- **Pay by x402**: no account, no key. Post the terms, get a 402 with the price, sign it, post again: the gig is live.
- **With an API key**: create it unfunded, in any ERC-20, send `tx_data` to the token, start it.

Bodies are JSON whatever the content type says, and every answer carries CORS headers."""

_HOW_TO_PAY = """The first call has no payment header and is answered **402** with the price, the reward plus the
commission: version 2 of the x402 requirements in the header `PAYMENT-REQUIRED` (base64 of JSON), version 1 in the body.
That answer is no failure. To pay:

1. Take an entry of `accepts`: it names the token (`asset`), the receiver (`payTo`) and the amount in its base units.
2. Sign an EIP-3009 `TransferWithAuthorization` of exactly that: EIP-712 typed data, with `extra` as the domain's name
   and version. It costs no gas, and nothing moves before the next step.
3. Send the same body again with the signed payment in the header `PAYMENT-SIGNATURE` (`X-PAYMENT` in version 1), within
   {timeout_s} s. The answer is the gig, with the settlement in `PAYMENT-RESPONSE`.

With the command line's buyer, in one step or with curl:

```
export BUYER_KEY=0x…          # the key of a wallet that holds USDC; it needs no gas
x402-gig buy {url} --type like --url https://farcaster.xyz/dwr/0x1a2b3c4d --amount {minimum} --max-price {price}

x402-gig sign {url} --terms terms.json --max-price {price} > header.txt
curl {url}/api/gigs/create/x402 -d @terms.json -H @header.txt
```

**503** means that the outcome is not known yet: send *the same header* again after `Retry-After`, and never sign anew
meanwhile. It is never charged twice."""

_HOW_TO_FUND = """The gig is created unfunded and not started. Send `tx_data` as it is in a transaction to
`gig_token_address`: it transfers the total (reward and commission) to the gig's own wallet. Then call
`POST /api/gigs/start`."""


class Document(Struct, frozen=True, dict=True):
    """What this operator's API is, for machines, while these rules are in force."""

    shop: GigShop
    rules: RuleSet
    seller: Seller
    public_url: str

    @cached_property
    def content(self) -> bytes:
        document = OpenAPI(
            info=Info(title="x402-gig", version=version("x402-gig"), description=_ABOUT),
            servers=[Server(url="/", description="This server"), Server(url=self.public_url)],
            tags=[
                Tag(name="Pay by x402", description="The payment is the authentication."),
                Tag(name="With an API key", description="Any ERC-20, funded by a transfer."),
                Tag(name="Gigs"),
                Tag(name="Server", description="For its operator's machines."),
            ],
            paths={
                BUY: PathItem(post=self._buy()),
                "/api/gigs/create": PathItem(post=self._create()),
                "/api/gigs/start": PathItem(post=_start()),
                "/api/gigs": PathItem(get=self._list()),
                "/api/gigs/types": PathItem(get=_types()),
                "/api/gigs/{gig_id}": PathItem(get=self._show()),
                "/healthz": PathItem(get=_healthz()),
                "/readyz": PathItem(get=_readyz()),
                "/metrics": PathItem(get=_metrics()),
            },
            components=Components(
                securitySchemes={_KEY: SecurityScheme(type="apiKey", name=keys.HEADER, security_scheme_in="header")}
            ),
        )
        described = construct_open_api_with_schema_class(document)
        content = {"openapi": described.openapi} | described.model_dump(
            mode="json", by_alias=True, exclude_defaults=True
        )
        # The library cannot look for models in a document with extensions.
        content["paths"][BUY]["post"]["x-payment-info"] = self._payment_info()
        self._add_rules(content["components"]["schemas"])
        return json.dumps(content).encode()

    def _add_rules(self, schemas: Json) -> None:
        """What the operator's settings say beyond the models."""
        for model in (PaidGigRequest, KeyedGigRequest):
            schemas[model.__name__]["properties"]["chain"]["const"] = self.shop.chain
        paid = schemas[PaidGigRequest.__name__]["properties"]
        paid["token_address"]["description"] = "USDC and nothing else, in any letter case."
        paid["amount"]["description"] += f" From {self._minimum} to {to_tokens(self.rules.maximum_reward)} USDC."

    @property
    def _minimum(self) -> str:
        return to_tokens(self.rules.minimum_reward)

    def _price(self, reward_units: int) -> str:
        return to_tokens(Price.of(reward_units, self.rules.commission_bps).total_units)

    def _payment_info(self) -> Json:
        rules, seller = self.rules, self.seller
        exact = {
            "scheme": "exact",
            "network": seller.network.caip2,
            "asset": seller.asset,
            "payTo": seller.pay_to,
            "maxTimeoutSeconds": seller.max_timeout_s,
        }
        price = {"min": self._price(rules.minimum_reward), "max": self._price(rules.maximum_reward)}
        return {"price": {"mode": "dynamic", "currency": "USD", **price}, "protocols": [{"x402": exact}]}

    def _requests(self) -> Json:
        return examples.requests(self.shop.chain, self.seller.asset, self._minimum)

    def _buy(self) -> Operation:
        about = _HOW_TO_PAY.format(
            url=self.public_url,
            minimum=self._minimum,
            price=self._price(self.rules.minimum_reward),
            timeout_s=self.seller.max_timeout_s,
        )
        paid = {"paid": examples.paid(self.shop.chain_id, self.seller.asset)}
        return Operation(
            operationId="buyGig",
            tags=["Pay by x402"],
            summary="Create and start a gig, paid by x402",
            description=about,
            parameters=[_payment_header(PAYMENT_SIGNATURE_HEADER, 2), _payment_header(X_PAYMENT_HEADER, 1)],
            requestBody=_body(PaidGigRequest, self._requests()),
            responses={
                "200": _answer("The gig is live.", answers.PaidGig, paid, _RECEIPTS),
                "400": _answer(
                    "Wrong terms, a body that is no JSON object, or a payment header that is malformed. Nothing is "
                    "charged.",
                    [answers.Invalid, answers.Refused],
                    {"terms": examples.INVALID, "header": examples.BAD_HEADER, "body": examples.NO_JSON},
                ),
                "402": self._payment_required(),
                "404": _answer("A chain that is not served here.", answers.Failed, {"chain": examples.NO_CHAIN}),
                "409": _answer("This payment bought other terms.", answers.Refused, {"conflict": examples.CONFLICT}),
                "413": _TOO_LARGE,
                "429": _TOO_MANY,
                "500": _answer("Our fault.", answers.Failed, {"failed": examples.CREATE_FAILED}),
                "503": _answer(
                    "`outcome_unknown`: the payment is under way. Any other reason: nothing was sent. Either way send "
                    "the same header again after `Retry-After`.",
                    answers.Refused,
                    {"unknown": examples.UNKNOWN, "unavailable": examples.UNAVAILABLE},
                    _RETRY,
                ),
            },
        )

    def _payment_required(self) -> Response:
        terms = self.seller.requirements_v1(
            self.rules.minimum_price_units, f"{self.public_url}{BUY}", "A gig that pays its reward, plus the commission"
        ).model_dump(mode="json", by_alias=True, exclude_none=True)
        said = {"x402Version": 1, "error": "Payment required", "accepts": [terms]}
        refused = {**said, "error": "insufficient_funds", "detail": "The payer holds less than the price"}
        return _answer(
            "No payment, or one that cannot settle: `error` is the reason then. Nothing is charged. Sign one of "
            "`accepts` and send it with the same body, as described above.",
            answers.PaymentRequired,
            {"price": said, "refused": refused},
            {PAYMENT_REQUIRED_HEADER: _encoded("Version 2 of the requirements", required=True), **_RECEIPTS},
        )

    def _create(self) -> Operation:
        keyed = {"created": examples.keyed(self.shop.chain_id, self.seller.asset)}
        return Operation(
            operationId="createGig",
            tags=["With an API key"],
            summary="Create a gig, to be funded and started",
            description=_HOW_TO_FUND,
            security=_WITH_KEY,
            requestBody=_body(KeyedGigRequest, self._requests()),
            responses={
                "201": _answer("Created; what to send where.", answers.KeyedGig, keyed),
                "400": _answer(
                    "Wrong terms, or a body that is no JSON object.",
                    [answers.Invalid, answers.Refused],
                    {"terms": examples.INVALID, "body": examples.NO_JSON},
                ),
                "401": _NO_KEY,
                "404": _answer("A chain that is not served here.", answers.Failed, {"chain": examples.NO_CHAIN}),
                "413": _TOO_LARGE,
                "429": _TOO_MANY,
                "500": _answer("Our fault.", answers.Failed, {"failed": examples.CREATE_FAILED}),
                "503": _UNAVAILABLE,
            },
        )

    def _gig(self) -> Json:
        return examples.gig(self.shop.chain, self.shop.chain_id, self.seller.asset)

    def _list(self) -> Operation:
        page = {"data": [self._gig()], "gigs": [self._gig()], "next": f"{self.public_url}/api/gigs?cursor=123"}
        link = Header(description="`rel=next`, where there is a next page.", schema=Schema(type="string"))
        return Operation(
            operationId="listGigs",
            tags=["Gigs"],
            summary="Gigs, the newest first",
            description="Those that are not started (`created`) are listed for the key that made them only.",
            security=[{}, *_WITH_KEY],
            parameters=_query(GigQuery),
            responses={
                "200": _answer("A page of them.", answers.Gigs, {"page": page}, {"Link": link}),
                "400": _answer("Wrong parameters.", answers.Invalid, {"parameters": examples.INVALID_QUERY}),
                "401": _NO_KEY,
                "429": _TOO_MANY,
                "503": _UNAVAILABLE,
            },
        )

    def _show(self) -> Operation:
        gig_id = _parameter("gig_id", "path", Schema(type="integer", minimum=1), required=True, example=1)
        return Operation(
            operationId="showGig",
            tags=["Gigs"],
            summary="A gig, its payment and its funding",
            description="A gig that was created with a key and is not started is shown to that key only.",
            security=[{}, *_WITH_KEY],
            parameters=[gig_id],
            responses={
                "200": _answer("The gig.", answers.OneGig, {"gig": {"data": self._gig()}}),
                "404": _answer(
                    "No such gig, or none that is paid.",
                    answers.Failed,
                    {"gig": examples.NO_GIG, "no_number": examples.NO_PAGE},
                ),
                "429": _TOO_MANY,
                "503": _UNAVAILABLE,
            },
        )


def _start() -> Operation:
    started = {"data": {"message": "Gig started successfully", "gig_id": 123}}
    return Operation(
        operationId="startGig",
        tags=["With an API key"],
        summary="Start a gig that is funded",
        description="Its wallet must hold the total at a confirmed block. From then on it cannot be changed.",
        security=_WITH_KEY,
        requestBody=_body(StartRequest, {"start": {"gig_id": 123}}),
        responses={
            "200": _answer("It is live, or will be at its start time.", answers.StartedGig, {"started": started}),
            "400": _answer(
                "Live already, not funded, or a wrong body.",
                [answers.Invalid, answers.Refused, answers.Failed, answers.Unfunded],
                {
                    "started": examples.IS_LIVE,
                    "not_funded": examples.NOT_FUNDED,
                    "id": examples.INVALID_ID,
                    "body": examples.NO_JSON,
                },
            ),
            "401": _NO_KEY,
            "404": _answer("No such gig of this key.", answers.Failed, {"gig": examples.NO_GIG}),
            "409": _answer("It is being started.", answers.Failed, {"in_progress": examples.IN_PROGRESS}),
            "413": _TOO_LARGE,
            "429": _TOO_MANY,
            "503": _UNAVAILABLE,
        },
    )


def _types() -> Operation:
    return Operation(
        operationId="listTypes",
        tags=["Gigs"],
        summary="What gigs there are",
        responses={
            "200": _answer("Their names.", answers.Types, {"types": {"data": [str(name) for name in GigType]}}),
            "429": _TOO_MANY,
            "500": _answer("Our fault.", answers.Failed, {"failed": examples.TYPES_FAILED}),
            "503": _UNAVAILABLE,
        },
    )


def _healthz() -> Operation:
    return Operation(
        operationId="healthz",
        tags=["Server"],
        summary="Does it live?",
        responses={"200": _answer("It does.", answers.Alive, {"alive": {"status": "ok"}})},
    )


def _readyz() -> Operation:
    ready = {"status": "ready", "problems": {}, "warnings": {}}
    unready = {"status": "unavailable", "problems": {"chain": "The chain node does not answer"}, "warnings": {}}
    return Operation(
        operationId="readyz",
        tags=["Server"],
        summary="Can it sell?",
        responses={
            "200": _answer("It can.", answers.Readiness, {"ready": ready}),
            "503": _answer("It cannot.", answers.Readiness, {"unavailable": unready}),
        },
    )


def _metrics() -> Operation:
    text = MediaType(schema=Schema(type="string"))
    return Operation(
        operationId="metrics",
        tags=["Server"],
        summary="How is it doing?",
        responses={"200": Response(description="In Prometheus's text.", content={"text/plain": text})},
    )


# The parts of operations


def _schema(models: type[BaseModel] | list[type[BaseModel]]) -> Schema:
    if isinstance(models, list):
        return Schema(oneOf=[PydanticSchema(schema_class=model) for model in models])
    return PydanticSchema(schema_class=models)


def _json(models: type[BaseModel] | list[type[BaseModel]], shown: Examples) -> dict[str, MediaType]:
    named = {name: Example(summary=name.replace("_", " "), value=value) for name, value in shown.items()}
    return {"application/json": MediaType(schema=_schema(models), examples=named)}


def _answer(
    description: str,
    models: type[BaseModel] | list[type[BaseModel]],
    shown: Examples,
    headers: dict[str, Header] | None = None,
) -> Response:
    return Response(description=description, content=_json(models, shown), headers=dict(headers or {}) or None)


def _body(model: type[BaseModel], shown: Examples) -> RequestBody:
    return RequestBody(required=True, content=_json(model, shown))


def _query(model: type[BaseModel]) -> list[Parameter]:
    """The fields of a model as parameters of a URL; lists are separated by commas there."""
    schema = model.model_json_schema()
    return [
        _parameter(
            name,
            "query",
            _inlined(field, schema.get("$defs", {})),
            description=field.pop("description", None),
            explode=False,
        )
        for name, field in schema["properties"].items()
    ]


def _inlined(schema: Any, definitions: Json) -> Any:
    """A schema without references."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return definitions[schema["$ref"].rsplit("/", 1)[-1]]
    return {name: _inlined(part, definitions) for name, part in schema.items()}


def _parameter(name: str, place: str, schema: Schema | Json, **more: object) -> Parameter:
    return Parameter.model_validate({"name": name, "in": place, "schema": schema, **more})


def _payment_header(name: str, x402_version: int) -> Parameter:
    about = f"The signed payment, x402 version {x402_version}: base64 of its JSON. Leave it out for the price."
    return _parameter(name, "header", Schema(type="string"), description=about)


def _encoded(description: str, *, required: bool = False) -> Header:
    return Header(description=f"{description}: base64 of JSON.", required=required, schema=Schema(type="string"))


_RETRY = {"Retry-After": Header(description="Seconds.", required=True, schema=Schema(type="integer"))}
_RECEIPTS = {
    PAYMENT_RESPONSE_HEADER: _encoded("What became of a payment of version 2"),
    X_PAYMENT_RESPONSE_HEADER: _encoded("What became of a payment of version 1"),
}
_NO_KEY = _answer("No key, or none that may be used.", answers.Failed, {"key": examples.INVALID_KEY})
_TOO_LARGE = _answer("The body is over 64 KB.", answers.Refused, {"large": examples.TOO_LARGE})
_TOO_MANY = _answer("Too many requests.", answers.Refused, {"limited": examples.TOO_MANY}, _RETRY)
_UNAVAILABLE = _answer("Not now.", answers.Refused, {"unavailable": examples.UNAVAILABLE}, _RETRY)
