"""A small local server that speaks the hub's protocol, and its failures: what `fetch` asks, over real HTTP.

    with Hub() as hub:
        hub.add("timm/net", content)
        fetch("timm/net", endpoint=hub.address, cache_dir=...)

Like the hub it answers HEAD and GET of `/{repo}/resolve/{revision}/{filename}` with the commit, the sha256 as linked
ETag and the linked size, and sends a GET on to another address (the hub's large files lie on a content network).
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The server; its fields may be changed while it runs.

    Attributes:
        etag: sent instead of the sha256.
        status: sent instead of 200 to everything.
        head_only: whether `status` holds for HEAD only.
        cut: per GET of content, after how many bytes the connection is closed; when used up, none is.
        stall: the same for falling silent.
        ranges: whether `Range` is honoured.
        refuse: whether every range is refused (416).
        network: address of the content network; this server under another name unless given.
        headers: more headers for the answers to HEAD.
        bare: leave out the hub's own headers, as a login page would.
        renamed: repositories that moved, old name to new.
        logins: for each request of `asked`, the Authorization that came with it.
        asked: `"HEAD /path"`, `"GET /path bytes=10-"`, … in order.
    """

    etag: str | None = None
    status: int = 200
    head_only: bool = False
    cut: list[int] = field(default_factory=list)
    stall: list[int] = field(default_factory=list)
    ranges: bool = True
    refuse: bool = False
    network: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    bare: bool = False
    renamed: dict[str, str] = field(default_factory=dict)
    logins: list[str | None] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, repo_id: str, content: bytes, filename: str = "model.safetensors") -> None:
        """Serve `content` at every revision."""
        self.contents[f"{repo_id}/{filename}"] = content

    @property
    def downloads(self) -> list[str]:
        """The ranges asked for, one for each GET of content ("" for the whole)."""
        return [line.partition("bytes=")[2] for line in self.asked if line.startswith("GET /content/")]

    @property
    def address(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        self.done = threading.Event()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.done.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent: clients that give up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.hub
        wanted = self.headers.get("Range", "")
        hub.asked.append(f"{self.command} {self.path} {wanted}".strip())
        hub.logins.append(self.headers.get("Authorization"))
        match = re.fullmatch(r"/(?:content|([^/]+/[^/]+)/resolve/[^/]+)/(.+)", self.path)
        key = None if match is None else f"{match[1]}/{match[2]}" if match[1] else match[2]
        if hub.status != 200 and (self.command == "HEAD" or not hub.head_only):
            self.bodyless(hub.status)
        elif match is not None and match[1] in hub.renamed:
            self.bodyless(307, {"Location": self.path.replace(match[1], hub.renamed[match[1]])})
        elif key not in hub.contents:
            self.bodyless(404, {"X-Error-Code": "EntryNotFound"})
        elif self.path.startswith("/content/"):
            self.content(hub.contents[key], wanted)
        else:
            content = hub.contents[key]
            linked = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{hub.etag or hashlib.sha256(content).hexdigest()}"',
                "ETag": '"of-the-redirect"',
            }
            # Another origin, since the hub's own would be followed by HEAD too: localhost is 127.0.0.1.
            network = hub.network or hub.address.replace("127.0.0.1", "localhost")
            onward = {"Location": f"{network}/content/{key}"}
            self.bodyless(200 if hub.bare else 302, hub.headers | ({} if hub.bare else linked | onward))

    def bodyless(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def content(self, content: bytes, wanted: str) -> None:
        hub = self.hub
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and hub.ranges else 0
        if start >= len(content) or (wanted and hub.refuse):
            self.bodyless(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        partial = bool(wanted and hub.ranges)
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        cut = hub.cut.pop(0) if hub.cut else None
        stall = hub.stall.pop(0) if hub.stall else None
        keep = next((number for number in (cut, stall) if number is not None), None)
        self.wfile.write(content[start:] if keep is None else content[start : start + keep])
        self.wfile.flush()
        if stall is not None:
            hub.done.wait(30)
        if keep is not None:
            self.close_connection = True


class Silent:
    """A server that accepts connections and never answers."""

    def __enter__(self) -> Silent:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()
