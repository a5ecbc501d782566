"""`r2viz app`: the app in a browser."""

from __future__ import annotations

import sys

import click


@click.command("app")
@click.option("--port", type=click.IntRange(0, 65535), default=8501, show_default=True, help="Port to listen on.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
def command(port: int, address: str, no_browser: bool) -> None:
    """Start the app in a browser (Streamlit, on this machine only unless --address says otherwise)."""
    from r2viz.web.server import serve

    sys.exit(serve(port=port, address=address, browser=not no_browser))
