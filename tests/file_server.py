"""A server of files for the tests of downloads: it can break off, lie about lengths and redirect."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files` (path -> content) on loopback, resuming where a client asks for it."""

    files: dict[str, bytes]
    requests: list[str]
    break_after: int | None = None
    claims: int = 0  # added to the length that the server states
    redirect: str = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.requests = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        self.server.requests.append(self.path)
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.end_headers()
            return
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start + self.server.claims))
        self.end_headers()
        stop = len(content) if self.server.break_after is None else start + self.server.break_after
        self.wfile.write(content[start:stop])

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass
