"""Start Streamlit on our page, with settings that are safe on a laptop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OPTIONS = {
    "server.maxUploadSize": "20",
    "server.enableXsrfProtection": "true",
    "server.enableCORS": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "theme.primaryColor": "#8a4f12",
}


def serve(*, port: int, address: str, browser: bool) -> int:
    """Serve until interrupted. Returns the exit code; where the system can, this process becomes the server."""
    options = {
        **OPTIONS,
        "server.address": address,
        "server.port": str(port),
        "server.headless": "false" if browser else "true",
    }
    page = Path(__file__).with_name("start.py")
    command = [sys.executable, "-m", "streamlit", "run", str(page)]
    command += [f"--{name}={value}" for name, value in options.items()]
    if os.name == "posix":  # signals then reach the server itself, and stopping us leaves nothing behind
        os.execv(sys.executable, command)
    return subprocess.call(command)
