"""A headless browser, for pages that must ask the network for nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def shown_by_a_browser(page: Path, tmp_path: Path) -> str:
    """Returns the page's document after loading; fails if it asks for anything but itself, or complains."""
    log = tmp_path / "net.json"
    result = _open(page, tmp_path, f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom")
    assert "Refused to" not in result.stderr and "CONSOLE" not in result.stderr
    # The browser may look after itself in the background; what counts is what the page itself asks for.
    events = json.loads(log.read_text())["events"]
    urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    asked_by_page = {
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator") not in (None, "not an origin") and "url" in event["params"]
    }
    assert not [url for url in asked_by_page if not url.startswith(("file:", "data:"))], urls
    return result.stdout


def painted_by_a_browser(page: Path, tmp_path: Path, *, width_px: int, height_px: int) -> Image.Image:
    """Returns the top of the page as the browser paints it."""
    picture = tmp_path / "page.png"
    _open(page, tmp_path, "--hide-scrollbars", f"--window-size={width_px},{height_px}", f"--screenshot={picture}")
    return Image.open(picture).convert("RGB")


def _open(page: Path, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    if CHROMIUM is None:
        assert "CI" not in os.environ, "chromium is missing, and CI skips nothing; .ci/run installs it on Debian"
        pytest.skip("needs chromium, chromium-browser or google-chrome on the PATH")
    result = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result
