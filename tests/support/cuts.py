"""A bad connection to PostgreSQL: a TCP proxy that passes a commit on and loses the answer to it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

COMMIT = b"COMMIT\0"
# PostgreSQL's messages begin with their kind; C is "that is done".
COMPLETE = b"C"
CONNECT_TIMEOUT_S = 5

# Given all that a client has said in a transaction: is it the one whose commit is to be cut?
Wanted = Callable[[bytes], bool]


@dataclass
class Cut:
    """A commit whose answer is lost.

    `is_passed_on`: PostgreSQL has committed it. `stays_away`: PostgreSQL cannot be reached afterwards.
    The cut waits for `holds` to be set.
    """

    wanted: Wanted
    is_passed_on: bool = True
    stays_away: bool = False
    holds: threading.Event = field(default_factory=threading.Event)
    is_committed: threading.Event = field(default_factory=threading.Event)
    is_made: threading.Event = field(default_factory=threading.Event)


@dataclass
class CommitProxy:
    """`url` is the database of `upstream`, behind connections that can be cut."""

    upstream: str
    port: int
    cut: Cut | None = None
    is_away: bool = False
    refused: int = 0
    # Of so many commits one is cut, by turns before and after it is passed on.
    every: int = 0
    commits: int = 0
    by_turns: int = 0
    _cuts: list[Cut] = field(default_factory=list)
    _open: set[socket.socket] = field(default_factory=set)

    @property
    def url(self) -> str:
        parts = urlsplit(self.upstream)
        where = parts.netloc.replace(f":{parts.port}", f":{self.port}")
        return urlunsplit(parts._replace(netloc=where))

    def cuts(self, said: str, *, passed_on: bool = True, stays_away: bool = False, holds: bool = False) -> Cut:
        """The next commit of a transaction in which these words were said."""
        cut = Cut(lambda transaction: said.encode() in transaction, passed_on, stays_away)
        if not holds:
            cut.holds.set()
        self._cuts.append(cut)
        self.cut = cut
        return cut

    def next_cut(self) -> Cut | None:
        every = self.every  # which may be changed meanwhile
        if not every or self.commits % every:
            return None
        self.by_turns += 1
        cut = Cut(lambda _: True, is_passed_on=self.by_turns % 2 == 0)
        cut.holds.set()
        return cut

    def go_away(self) -> None:
        """Every connection is cut, and nobody gets a new one."""
        self.is_away = True
        self.cut_all()

    def come_back(self) -> None:
        self.is_away = False

    def heal(self) -> None:
        """As if nothing had been wrong."""
        for cut in self._cuts:
            cut.holds.set()
        self.cut = None
        self.every = 0
        self.come_back()

    def serve(self, client: socket.socket) -> None:
        where = urlsplit(self.upstream)
        if self.is_away:
            self.refused += 1
            client.close()
            return
        server = socket.create_connection((where.hostname, where.port), CONNECT_TIMEOUT_S)
        server.settimeout(None)
        self._open |= {client, server}
        Connection(self, client, server).start()

    def cut_all(self) -> None:
        for one in list(self._open):
            _close(one)
        self._open.clear()


@dataclass
class Connection:
    """A client's, with what it has said since its last commit."""

    proxy: CommitProxy
    client: socket.socket
    server: socket.socket
    said: bytes = b""
    cut: Cut | None = None

    def start(self) -> None:
        for work in (self._from_client, self._from_server):
            threading.Thread(target=work, daemon=True).start()

    def _from_client(self) -> None:
        with suppress(OSError):
            while data := self.client.recv(1 << 16):
                self.said += data
                if COMMIT in data:
                    self._meets_commit()
                    self.said = b""
                if self.cut is not None and not self.cut.is_passed_on:
                    break
                self.server.sendall(data)
        self._end()

    def _meets_commit(self) -> None:
        self.proxy.commits += 1
        cut = self.proxy.cut or self.proxy.next_cut()
        if cut is not None and cut.wanted(self.said):
            self.proxy.cut, self.cut = None, cut

    def _from_server(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(1 << 16):
                if self.cut is not None and COMPLETE in data:
                    self.cut.is_committed.set()
                    self.cut.holds.wait()
                    break
                self.client.sendall(data)
        self._end()

    def _end(self) -> None:
        if self.cut is not None and not self.cut.is_made.is_set():
            if self.cut.stays_away:
                self.proxy.go_away()
            self.cut.is_made.set()
        _close(self.client)
        _close(self.server)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def commit_proxy(database_url: str) -> Iterator[CommitProxy]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        proxy = CommitProxy(database_url, listener.getsockname()[1])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    proxy.serve(listener.accept()[0])

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(CONNECT_TIMEOUT_S)
            proxy.cut_all()
