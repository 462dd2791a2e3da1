"""The command `x402-gig`, also as `python -m x402_gig`."""

import sys


def main() -> None:
    # A server is waited for, and importing the whole command line takes a tenth of its start.
    if sys.argv[1:] == ["serve"]:
        from x402_gig.cli.serve import serve

        serve()
    else:
        from x402_gig.cli.main import app

        app(prog_name="x402-gig")


if __name__ == "__main__":
    main()
