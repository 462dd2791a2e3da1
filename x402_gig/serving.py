"""For workers: `uvicorn x402_gig.serving:app --factory --http x402_gig.serving:Connection --workers 3`."""

from x402_gig.server.http import app
from x402_gig.web.connection import Connection

__all__ = ["Connection", "app"]
