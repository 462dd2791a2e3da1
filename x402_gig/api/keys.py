"""Who asks: the holder of an API key, or nobody we know."""

import time
from dataclasses import dataclass

from starlette.requests import Request

from x402_gig.errors import InvalidApiKey
from x402_gig.store import api_keys
from x402_gig.store.api_keys import ApiKey
from x402_gig.store.engine import Ledger

HEADER = "x-api-key"


@dataclass(frozen=True)
class Keys:
    ledger: Ledger

    async def check(self, request: Request) -> ApiKey:
        """Raises InvalidApiKey, also when the header is missing or there are several."""
        key = await self.find(request)
        if key is None:
            raise InvalidApiKey("Invalid API key")
        return key

    async def find(self, request: Request) -> ApiKey | None:
        """None when the request carries no key that may be used now."""
        presented = request.headers.getlist(HEADER)
        if len(presented) != 1:
            return None
        key = await self.ledger.read(lambda c: api_keys.find(c, presented[0]))
        if key is not None and key.is_used_newly(int(time.time())):
            await self.ledger.write(lambda c: api_keys.used(c, key))
        return key
