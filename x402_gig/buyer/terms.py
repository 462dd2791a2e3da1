"""The terms of a gig on the command line: a file, sent as it stands, or a flag for each field."""

import functools
import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from msgspec import Struct
from msgspec.structs import asdict


def _flag(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Terms")


class TermFlags(Struct, frozen=True, kw_only=True):
    """Every field but `terms` is the create call's and goes there as it was typed: the server knows the rules."""

    terms: Annotated[Path | None, _flag("--terms", "All terms as a JSON file, instead of the flags below.")] = None
    gig_type: Annotated[
        str | None,
        _flag("--type", "mention, like, recast, boost, custom_bounty, follow, hold_erc20 or buy_erc20."),
    ] = None
    amount: Annotated[str | None, _flag("--amount", "Reward in USDC; the commission is added on top.")] = None
    url: Annotated[str | None, _flag("--url", "The post or account that the gig is about.")] = None
    duration: Annotated[str | None, _flag("--duration", "1day or 3days; without it 1day.")] = None
    start_time: Annotated[str | None, _flag("--start", "ISO 8601; without it the gig starts when it is paid.")] = None
    platform: Annotated[str | None, _flag("--platform", "farcaster, x or onchain.")] = None
    keyword: Annotated[str | None, _flag("--keyword", "What a mention must contain; without it USDC.")] = None
    how_to_earn: Annotated[str | None, _flag("--how-to-earn", "What to do; a custom_bounty needs it.")] = None
    earning_criteria: Annotated[str | None, _flag("--earning-criteria", "Who is paid.")] = None
    token_contract: Annotated[str | None, _flag("--token-contract", "For hold_erc20 and buy_erc20.")] = None
    token_amount_needed: Annotated[str | None, _flag("--token-amount-needed", "Likewise.")] = None
    verifier: Annotated[str | None, _flag("--verifier", "A verifier of your own.")] = None
    chain: Annotated[str | None, _flag("--chain", "base or base-sepolia; without it base.")] = None

    def body(self) -> bytes:
        """What to post. Raises typer.BadParameter."""
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "terms"}
        if self.terms is not None:
            if given:
                raise typer.BadParameter("--terms has them all: give the file or the flags, not both")
            return _read(self.terms)
        if not given:
            raise typer.BadParameter("which gig? Give --terms FILE, or --type, --amount and what that type needs")
        return json.dumps(_defaults(given.get("chain", "base")) | given).encode()


def _defaults(chain: str) -> dict[str, str]:
    from x402_gig.settings import NETWORKS

    tokens = {preset.v1_name: preset.usdc for preset in NETWORKS.values()}
    if chain not in tokens:
        raise typer.BadParameter(f"--chain is one of {', '.join(tokens)}")
    # A start in the past means now. The day's first minute rather than this second, so that the same command typed
    # again is the same order: after a lost answer the server then finds the payment that was made already.
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")
    return {"chain": chain, "token_address": tokens[chain], "start_time": today, "duration": "1day"}


def _read(path: Path) -> bytes:
    """The file, unchanged: its numbers are never parsed and written again."""
    try:
        content = path.read_bytes()
        terms = json.loads(content.decode())
    except OSError as exc:
        raise typer.BadParameter(f"{path}: {exc.strerror}") from None
    except ValueError as exc:
        raise typer.BadParameter(f"{path} is not JSON: {exc}") from None
    if not isinstance(terms, dict):
        raise typer.BadParameter(f"{path} does not hold a JSON object")
    return content


def takes_terms(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command`, which has a parameter `flags: TermFlags`, one option for each of its fields instead."""
    hints = get_type_hints(TermFlags, include_extras=True)
    names = TermFlags.__struct_fields__
    keyword = inspect.Parameter.KEYWORD_ONLY

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        flags = TermFlags(**{name: values.pop(name) for name in names})
        command(flags=flags, **values)

    own = [p.replace(kind=keyword) for p in inspect.signature(command).parameters.values() if p.name != "flags"]
    added = [inspect.Parameter(name, keyword, default=None, annotation=hints[name]) for name in names]
    # Typer makes a command's options from its signature.
    with_flags.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return with_flags
