"""Log lines: plain text for people, JSON for `serve`; every line of a payment's life carries its id."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from pythonjsonlogger.orjson import OrjsonFormatter

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class PaymentLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines are about one payment: `payment_id` in JSON, and in the text for people."""

    def __init__(self, logger: logging.Logger, payment_id: int) -> None:
        super().__init__(logger, {"payment_id": payment_id})

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        kwargs["extra"] = self.extra
        return f"payment {(self.extra or {})['payment_id']}: {msg}", kwargs


class Trouble:
    """What keeps a loop from its work: said when it begins and when it is over, not each time it tries."""

    def __init__(self, logger: logging.Logger, whose: str) -> None:
        self._logger, self._whose, self._said = logger, whose, ""

    def is_now(self, problem: str) -> None:
        if problem and problem != self._said:
            self._logger.warning("%s: %s", self._whose, problem)
        elif self._said and not problem:
            self._logger.warning("%s: at work again", self._whose)
        self._said = problem


class Together(logging.StreamHandler[Any]):
    """Lines of one turn of the event loop go out in one write: a batch has some for each of its payments."""

    def flush(self) -> None:
        try:
            asyncio.get_running_loop().call_soon(self._send)
        except RuntimeError:
            super().flush()

    def _send(self) -> None:
        # Where nobody reads or the disk is full, the event loop would log that, and be told so again for ever.
        with contextlib.suppress(OSError, ValueError):
            super().flush()


def configure(level: int, *, as_json: bool = False) -> None:
    """Write to stderr. Libraries that log every call are kept down."""
    handler: logging.Handler
    if as_json:
        sys.stderr.reconfigure(line_buffering=False)  # type: ignore[union-attr]
        handler = Together(sys.stderr)
        handler.setFormatter(OrjsonFormatter(TEXT, rename_fields={"asctime": "at"}))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(TEXT))
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("httpx", "alembic", "web3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
