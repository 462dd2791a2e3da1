"""Who asks: the holder of an API key, or nobody we know."""

import contextlib
import time
from collections.abc import Sequence

from msgspec import Struct
from starlette.requests import Request

from x402_gig.errors import InvalidApiKey, Unavailable
from x402_gig.ledger import api_keys
from x402_gig.ledger.api_keys import ApiKey
from x402_gig.ledger.engine import Ledger

HEADER = b"x-api-key"


class Keys(Struct, frozen=True):
    ledger: Ledger

    async def find(self, presented: Sequence[str]) -> ApiKey | None:
        """None when it is no key that may be used now, also when there are several."""
        if len(presented) != 1:
            return None
        key = await self.ledger.read(lambda c: api_keys.find(c, presented[0]))
        if key is not None and key.is_used_newly(int(time.time())):
            with contextlib.suppress(Unavailable):  # nobody waits for this to be written down
                await self.ledger.write(lambda c: api_keys.used(c, key))
        return key


def key_of(request: Request) -> ApiKey:
    """The one that the middleware found. Raises InvalidApiKey."""
    key: ApiKey | None = request.state.api_key
    if key is None:
        raise InvalidApiKey("Invalid API key")
    return key
