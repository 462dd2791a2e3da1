"""How many JSON-RPC calls reach the chain: a relay in front of it that only counts."""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.harness import Chain

CALL = re.compile(rb'"method": ?"(\w+)"')
# Longer than a call's name: it may come in two chunks.
LONGEST = 60


@dataclass
class Relay:
    """`chain` is the same chain with the relay in front of it."""

    chain: Chain
    calls: Counter[str] = field(default_factory=Counter)

    def note(self, asked: bytes) -> bytes:
        """Count the calls in it; what is left of it to look at together with what comes next."""
        end = 0
        for call in CALL.finditer(asked):
            self.calls[call[1].decode()] += 1
            end = call.end()
        return asked[max(end, len(asked) - LONGEST) :]


@contextmanager
def counted(chain: Chain) -> Iterator[Relay]:
    """Bytes go through as they come, so that it takes no time worth mentioning."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    relay = Relay(chain)
    serving = asyncio.run_coroutine_threadsafe(_serve(relay, chain), loop).result()
    relay.chain = Chain(f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}")
    try:
        yield relay
    finally:
        relay.chain.http.close()
        asyncio.run_coroutine_threadsafe(_close(serving), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(relay: Relay, chain: Chain) -> asyncio.Server:
    upstream = urlsplit(chain.rpc_url)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection(upstream.hostname, upstream.port)
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(_pass_on(reader, questions, relay), _pass_on(answers, writer, None))

    return await asyncio.start_server(connected, "127.0.0.1", 0)


async def _close(serving: asyncio.Server) -> None:
    serving.close()
    open_ = asyncio.all_tasks() - {asyncio.current_task()}
    for task in open_:
        task.cancel()
    await asyncio.gather(*open_, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, relay: Relay | None) -> None:
    tail = b""
    while chunk := await reader.read(65536):
        if relay is not None:
            tail = relay.note(tail + chunk)
        writer.write(chunk)
        await writer.drain()
    writer.close()
