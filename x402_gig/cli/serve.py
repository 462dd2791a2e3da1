"""The command `serve`, quickly."""

import gc
import logging
import os


def serve() -> None:
    """Until Ctrl-C or SIGTERM. Raises SystemExit when it cannot start."""
    # What is imported stays: looking for garbage in it takes a tenth of the start.
    gc.disable()
    # Nor has anybody plugins for our models: pydantic would look into every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from x402_gig import settings
    from x402_gig.cli.terminal import run_to_end
    from x402_gig.server import http

    gc.freeze()
    gc.enable()
    run_to_end(http.serve(settings.load), logging.INFO, json_logs=True)
