"""A real Chromium without a window. Its binary is in an npm package, which unpacks it; nothing is downloaded."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.support.harness import ROOT

_UNPACK = "import chromium from '@sparticuz/chromium'; console.log(await chromium.executablePath())"
# Makes it unpack the libraries that it needs too, which are no part of every system.
_AS_ON_A_BARE_SYSTEM = {"VERCEL": "1"}
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    # A bare system has 64 MB of shared memory, too little for a page.
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Unpacked takes 200 MB, until it is closed."""
    # Playwright's own Node.js wants a library that a bare system lacks.
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", shutil.which("node") or "")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        program = _unpacked(folder)
        env = os.environ if find_library("nss3") else {**os.environ, **_brought(folder)}
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS, env=dict(env))
        try:
            yield browser
        finally:
            browser.close()


def _brought(folder: str) -> dict[str, str]:
    """The package's own libraries and fonts, for a bare system. Without fonts a page crashes."""
    fonts = Path(folder) / "fonts.conf"
    fonts.write_text(f"<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>")
    return {"LD_LIBRARY_PATH": f"{folder}/al2023/lib", "FONTCONFIG_FILE": str(fonts)}


def _unpacked(folder: str) -> str:
    done = subprocess.run(
        ["node", "--input-type=module", "-e", _UNPACK],
        cwd=ROOT,
        env={**os.environ, **_AS_ON_A_BARE_SYSTEM, "TMPDIR": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
