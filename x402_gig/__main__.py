"""`python -m x402_gig` is the command `x402-gig`."""

from x402_gig.cli import app

app(prog_name="x402-gig")
