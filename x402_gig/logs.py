"""Log lines: plain text for people, JSON for `serve`; every line of a payment's life carries its id."""

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

from pythonjsonlogger.orjson import OrjsonFormatter

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
LOGGED_CHARS = 200
HIDDEN = "…"
# URLs, words that may be keys, signatures or signed transactions (long ones with a digit), and phrases that may be a
# seed. Numbers and addresses stay, and names of methods.
_SECRET = re.compile(
    r"\w+://\S+"
    r"|(?<![\w+/=.-])(?!(?:[\d.]+|0x[0-9a-fA-F]{40})\.?(?![\w+/=.-]))(?=[\w+/=.-]*\d)[\w+/=.-]{16,}"
    r"|\b[a-z]{3,8}(?: +[a-z]{3,8}){11,}\b"
)


class Hiding:
    """Words of somebody whom we ask at a URL, made fit for the log: without what may be secret."""

    def __init__(self, url: str, *secrets: str) -> None:
        found = {*_parts(url), *secrets}
        self._secrets = sorted((part for part in found if len(part) >= 4), key=len, reverse=True)

    def of(self, text: str) -> str:
        for secret in self._secrets:
            text = re.sub(re.escape(secret), HIDDEN, text, flags=re.IGNORECASE)
        plain = "".join(char if char.isprintable() else " " for char in _SECRET.sub(HIDDEN, text))
        return " ".join(plain.split())[:LOGGED_CHARS]


def _parts(url: str) -> list[str]:
    """Those that may be a key."""
    parts = urlsplit(url)
    values = [pair.partition("=")[2] for pair in parts.query.split("&")]
    found = [parts.netloc, parts.hostname, parts.username, parts.password, *parts.path.split("/"), *values]
    written = [part for part in found if part]
    return [*written, *map(unquote, written), *map(unquote_plus, written)]


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
