"""What a gig can be: its types, where and how long it runs, and what each type asks of its buyer."""

import re
from collections.abc import Mapping
from enum import Enum, StrEnum, auto

from msgspec import Struct
from pydantic import HttpUrl


class GigType(StrEnum):
    MENTION = "mention"
    LIKE = "like"
    RECAST = "recast"
    BOOST = "boost"
    CUSTOM_BOUNTY = "custom_bounty"
    FOLLOW = "follow"
    HOLD_ERC20 = "hold_erc20"
    BUY_ERC20 = "buy_erc20"


class Platform(StrEnum):
    FARCASTER = "farcaster"
    X = "x"
    ONCHAIN = "onchain"


class Duration(StrEnum):
    ONE_DAY = "1day"
    THREE_DAYS = "3days"
    ONE_WEEK = "1week"
    TWO_WEEKS = "2weeks"
    THREE_MONTHS = "3months"
    SIX_MONTHS = "6months"


_DAY_S = 24 * 60 * 60

DURATION_S: Mapping[Duration, int] = {
    Duration.ONE_DAY: _DAY_S,
    Duration.THREE_DAYS: 3 * _DAY_S,
    Duration.ONE_WEEK: 7 * _DAY_S,
    Duration.TWO_WEEKS: 14 * _DAY_S,
    Duration.THREE_MONTHS: 90 * _DAY_S,
    Duration.SIX_MONTHS: 180 * _DAY_S,
}

# Names a buyer may well have meant. All but the one that is served are answered with "not found", not "invalid".
KNOWN_CHAINS = frozenset(
    {
        "arbitrum",
        "arbitrum-sepolia",
        "avalanche",
        "base",
        "base-sepolia",
        "berachain",
        "blast",
        "bsc",
        "celo",
        "degen",
        "ethereum",
        "gnosis",
        "ink",
        "linea",
        "mantle",
        "monad",
        "optimism",
        "optimism-sepolia",
        "polygon",
        "scroll",
        "sepolia",
        "solana",
        "sonic",
        "unichain",
        "worldchain",
        "zksync",
        "zora",
    }
)


class UrlKind(Enum):
    """What the `url` of a gig may point at; OTHER is any http(s) address that is no post and no account."""

    POST = auto()
    ACCOUNT = auto()
    OTHER = auto()


ANY_URL = tuple(UrlKind)


def _social_url(hosts: str, user: str, post: str) -> re.Pattern[str]:
    """No user info and no port can match; a post is an account's URL with something after it."""
    host = rf"(?P<host>(?i:(?:www\.|mobile\.)?(?:{hosts})))"
    return re.compile(rf"(?i:https)://{host}/(?P<user>{user})(?P<post>{post})?/?(?:[?#]\S*)?")


# Farcaster shows "!123" for account 123 as long as it has no name, and names may end in ".eth".
SOCIAL_URLS: Mapping[Platform, re.Pattern[str]] = {
    Platform.FARCASTER: _social_url(
        hosts=r"farcaster\.xyz|warpcast\.com",
        user=r"!?[A-Za-z0-9][A-Za-z0-9._-]*",
        post=r"/0x[0-9a-fA-F]{8,40}",
    ),
    Platform.X: _social_url(
        hosts=r"twitter\.com|x\.com",
        user=r"[A-Za-z0-9_]+",
        post=r"/status/[0-9]+",
    ),
}

# A browser's idea of a URL forgives more than this: backslashes, missing slashes, a tab in the middle.
_OTHER_URL = re.compile(r"(?i:https?)://[\w\[][^\s\\]*")


def normal_url(text: str, kinds: tuple[UrlKind, ...], platform: Platform | None) -> str:
    """The one form in which a URL is kept; a post or an account loses query, fragment and trailing slash.

    Raises ValueError when it is of none of these kinds, or is a post or an account on another platform.
    """
    if platform not in SOCIAL_URLS:
        kinds = ANY_URL  # there is nothing of the platform's own to compare with
    for owner, pattern in SOCIAL_URLS.items():
        match = pattern.fullmatch(text)
        if not match:
            continue
        host, user, post = match.groups()
        kind = UrlKind.POST if post else UrlKind.ACCOUNT
        if kind in kinds and (owner is platform or UrlKind.OTHER in kinds):
            return f"https://{host.lower()}/{user}{(post or '').lower()}"
    if UrlKind.OTHER in kinds and _OTHER_URL.fullmatch(text):
        return _normal_other_url(HttpUrl(text))
    raise ValueError("not the kind of URL that was asked for")


def _normal_other_url(url: HttpUrl) -> str:
    """Elsewhere the query may be what tells one page from another, so it stays."""
    return str(url) if url.query or url.fragment else str(url).removesuffix("/")


class TypeRules(Struct, frozen=True):
    """What one gig type asks for, and the texts it gets where its buyer wrote none."""

    how_to_earn: str | None
    earning_criteria: str | None
    url_kinds: tuple[UrlKind, ...] = (UrlKind.POST, UrlKind.ACCOUNT)
    required: tuple[str, ...] = ()
    platform: Platform = Platform.FARCASTER

    @property
    def may_be_onchain(self) -> bool:
        return self.platform is Platform.ONCHAIN


_TOKEN = ("token_contract", "token_amount_needed")

RULES: Mapping[GigType, TypeRules] = {
    GigType.MENTION: TypeRules(
        "Write a public post of your own that contains the keyword of this gig.",
        "The post was published while the gig was running, contains the keyword, and has not been deleted.",
    ),
    GigType.LIKE: TypeRules(
        "Open the linked post and like it.",
        "Your like was given while the gig was running and has not been taken back.",
        (UrlKind.POST,),
        required=("url",),
    ),
    GigType.RECAST: TypeRules(
        "Open the linked post and share it with your followers, as a recast or a repost.",
        "The post was shared while the gig was running and is still on your profile.",
        (UrlKind.POST,),
        required=("url",),
    ),
    GigType.BOOST: TypeRules(
        "Help the linked post to be seen: like it, share it, and reply to it or quote it.",
        "Everything you did for the post happened while the gig was running and is still visible.",
        (UrlKind.POST,),
        required=("url",),
    ),
    GigType.CUSTOM_BOUNTY: TypeRules(
        None,
        "Your work does what the instructions ask for and was handed in before the end of the gig.",
        ANY_URL,
        required=("how_to_earn",),
    ),
    GigType.FOLLOW: TypeRules(
        "Open the linked account and follow it.",
        "You began to follow the account while the gig was running and still follow it.",
        (UrlKind.ACCOUNT,),
        required=("url",),
    ),
    GigType.HOLD_ERC20: TypeRules(
        "Hold at least the required amount of the token in a wallet that is linked to your profile.",
        "The balance of your wallet did not fall below the required amount before the end of the gig.",
        required=_TOKEN,
        platform=Platform.ONCHAIN,
    ),
    GigType.BUY_ERC20: TypeRules(
        "Buy at least the required amount of the token with a wallet that is linked to your profile.",
        "The purchase was made on chain while the gig was running; transfers from other wallets do not count.",
        required=_TOKEN,
        platform=Platform.ONCHAIN,
    ),
}


class Display(Struct, frozen=True):
    """How clients present a type: a label for each platform, and a placeholder where it takes an input."""

    icon: str
    labels: Mapping[Platform, str]
    placeholder: str = ""


def _display(icon: str, label: str, on_farcaster: str = "", placeholder: str = "") -> Display:
    return Display(icon, {Platform.X: label, Platform.FARCASTER: on_farcaster or label}, placeholder)


DISPLAY: Mapping[GigType, Display] = {
    GigType.MENTION: _display("at", "Mention", placeholder="Keyword"),
    GigType.LIKE: _display("heart", "Like", placeholder="Link to the post"),
    GigType.RECAST: _display("repeat", "Repost", "Recast", "Link to the post"),
    GigType.BOOST: _display("rocket", "Boost", placeholder="Link to the post"),
    GigType.CUSTOM_BOUNTY: _display("star", "Custom bounty", placeholder="What is there to do?"),
    GigType.FOLLOW: _display("user-plus", "Follow", placeholder="Link to the account"),
    GigType.HOLD_ERC20: _display("wallet", "Hold a token", placeholder="Token contract"),
    GigType.BUY_ERC20: _display("cart", "Buy a token", placeholder="Token contract"),
}
