"""The page for a person at `/`: files of our own, without a framework and without anything from elsewhere.

They are read without a key, since they say nothing of the server; what the page then asks needs one like any client.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from ..openai.reply import Call

Handler = Callable[[Call], Awaitable[None]]

_FOLDER: Final = Path(__file__).parent / "www"
FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# What a model says can then neither run, nor load, nor send anything.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> dict[str, dict[str, Handler]]:
    """Path -> method -> what answers, for every file of the page."""
    return {path: {"GET": _sender(_FOLDER / name, kind)} for path, (name, kind) in FILES.items()}


def _sender(path: Path, kind: str) -> Handler:
    body = path.read_bytes()
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"content-security-policy", POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
        (b"etag", f'"{hashlib.sha256(body).hexdigest()[:16]}"'.encode()),
    ]

    async def handler(call: Call) -> None:
        await call.send({"type": "http.response.start", "status": 200, "headers": [*headers]})
        await call.send({"type": "http.response.body", "body": body})

    return handler
