"""A chat endpoint of nothing but the standard library: it answers, counts, and knows keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import override


@dataclass
class Chat:
    """What it was asked."""

    url: str = ""
    asked: list[tuple[str, dict]] = field(default_factory=list)
    """key and body of each request"""
    says: str = "the answer"


@contextmanager
def chat_server(host: str = "127.0.0.1") -> Iterator[Chat]:
    """Serve until the end of the context."""
    chat = Chat()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers.get("x-api-key") or self.headers.get("Authorization", "").removeprefix("Bearer ")
            chat.asked.append((key, body))
            message = {"role": "assistant", "content": chat.says}
            answer = json.dumps({
                "id": "1", "object": "chat.completion", "created": 0, "model": "policy",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    chat.url = f"http://{host}:{server.server_address[1]}"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
