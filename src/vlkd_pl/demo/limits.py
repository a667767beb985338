"""Limits on the requests of the demo's visitors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlkd_pl.errors import needs_extra

with needs_extra("demo"):
    from starlette.exceptions import HTTPException


MAX_UPLOADS = 100
"""Maximum number of stored uploads, which take at most twenty times the size of one; the oldest are deleted."""
_UPLOADS_AT_ONCE = 8
_BODY_BYTES = 2**16  # of a request, in addition to the file in it
_UNUSED_ROUTES = tuple(
    f"/gradio_api/{route}"
    for route in ("proxy=", "process_recording", "component_server", "deep_link", "custom_component/", "stream/")
)
_Message = MutableMapping[str, Any]


class RequestLimits:
    """ASGI middleware that limits uploads and their storage, and closes the routes that the page does not use.

    Args:
        app: Application to wrap.
        folder: Upload folder; files that exist at the start are never deleted.
        max_upload_bytes: Maximum size of an upload in bytes.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], folder: Path, max_upload_bytes: int) -> None:
        self.app = app
        self.folder = folder
        self.max_upload_bytes = max_upload_bytes
        self.permanent_files = _files(folder)
        self.num_uploading = 0

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """Serve a request; a body that is too large is refused with status 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        is_upload = path.rstrip("/").endswith("/upload")
        if any(route in path for route in _UNUSED_ROUTES) or "://" in path:  # Gradio fetches /file=http://…
            await _respond(send, 404, "not found")
            return
        if is_upload and self.num_uploading >= _UPLOADS_AT_ONCE:
            await _respond(send, 503, "too many uploads at once: try again")
            return
        num_bytes = 0

        async def bounded() -> _Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_upload_bytes + _BODY_BYTES:
                raise HTTPException(413, f"a request exceeds the maximum allowed size of {self.max_upload_bytes} bytes")
            return message

        self.num_uploading += is_upload
        try:
            await self.app(scope, bounded, send)
        finally:
            self.num_uploading -= is_upload
            if is_upload:
                self.prune()

    def prune(self) -> None:
        """Delete the oldest uploads beyond the limits."""
        uploads = []
        for file in _files(self.folder) - self.permanent_files:
            with suppress(FileNotFoundError):  # an upload may be moving the file right now
                uploads.append((file.stat().st_mtime, file.stat().st_size, file))
        num_bytes = 0
        for number, (_, size, file) in enumerate(sorted(uploads, reverse=True), start=1):
            num_bytes += size
            if number > MAX_UPLOADS or num_bytes > 20 * self.max_upload_bytes:
                file.unlink(missing_ok=True)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


async def _respond(send: Callable[[_Message], Awaitable[None]], status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
