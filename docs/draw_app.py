"""Draws README's picture of the app, in a real browser: needs `pip install playwright` and a Chromium.

python docs/draw_app.py [--chromium /usr/bin/chromium] [--weights auto|random]
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

TARGET = Path(__file__).resolve().parent / "app.png"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Start the app, choose an example, wait for the figure, take the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--weights", default="auto")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "r2viz", "app", "--no-browser", "--port", str(port)])
    try:
        _wait(port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=QUIET)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_text("trained weights", exact=True).wait_for(timeout=60_000)
            if options.weights == "random":
                page.get_by_text("random weights (untrained networks)").click()
            page.get_by_alt_text("Class activation maps of").wait_for(timeout=180_000)
            page.wait_for_timeout(1500)
            page.screenshot(path=TARGET)
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    print(TARGET.name)


def _wait(port: int) -> None:
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.25)
    raise SystemExit("the app did not start within a minute")


if __name__ == "__main__":
    main()
