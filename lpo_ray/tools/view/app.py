"""The viewer's web server: JSON from the files of runs, and one static page that shows it.

It listens at the loopback address, answers no other host name (a page of another site could have its own name point
here), and lets the page load nothing from elsewhere.
"""

from __future__ import annotations

import json
import math
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.staticfiles import StaticFiles
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from lpo_ray.errors import ConfigError
from lpo_ray.tools.view.group import read_group, read_tokens
from lpo_ray.tools.view.group_list import Order, Wanted, list_groups
from lpo_ray.tools.view.run_folders import curves, find_runs, log_tail, run_folder, run_info

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Json(Response):
    """JSON of any value of a run: NaN and Inf as "NaN", "Infinity" and "-Infinity", lone surrogates escaped."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Write a value of a run as JSON."""
        return json.dumps(_plain(content), allow_nan=False).encode("ascii")


def view(root: Path, port: int) -> None:
    """Serve the page until interrupted. ConfigError when ``root`` has no run or the port is taken."""
    if not find_runs(root):
        raise ConfigError(f"{root} has no runs; expected the folder of a run, or one with runs in it, such as runs/")
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {HOST}: {error.strerror}; expected a free one, or --port 0") from error
        sys.stdout.write(f"http://{HOST}:{listening.getsockname()[1]}/  shows {root}; Ctrl-C ends it\n")
        sys.stdout.flush()
        settings = uvicorn.Config(
            build_app(root), log_level="warning", server_header=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(settings).run(sockets=[listening])


def build_app(root: Path) -> FastAPI:
    """Build the application that shows the runs in ``root``; it only reads."""
    app = FastAPI(title="lpo-ray view", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_routes(root), prefix="/api")
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_exception_handler(ConfigError, _refused)
    app.middleware("http")(_with_headers)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return app


def _routes(root: Path) -> APIRouter:
    """Make the routes: functions that read files, each in a thread; ``run`` is a name of find_runs."""
    routes = APIRouter()

    @routes.get("/runs")
    def runs() -> Response:
        return Json([asdict(run_info(root, run)) for run in find_runs(root)])

    @routes.get("/run")
    def run(run: str) -> Response:
        return Json(asdict(run_info(root, run)))

    @routes.get("/curves")
    def curves_of(run: str) -> Response:
        return Json(curves(run_folder(root, run)))

    @routes.get("/log")
    def log(run: str) -> Response:
        return Json(log_tail(run_folder(root, run)))

    @routes.get("/groups")
    def groups(
        run: str, wanted: Annotated[Wanted, Depends()], order: Order = "step", ascending: bool = False, page: int = 0
    ) -> Response:
        return Json(asdict(list_groups(run_folder(root, run), wanted, order, ascending=ascending, page=page)))

    @routes.get("/group")
    def group(run: str, step: int, prompt_id: str, attempt: int) -> Response:
        return Json(read_group(run_folder(root, run), step, (prompt_id, attempt)))

    @routes.get("/tokens")
    def tokens(
        run: str, step: int, prompt_id: str, attempt: int, response: int, start: Annotated[int, Query(ge=0)] = 0
    ) -> Response:
        return Json(asdict(read_tokens(run_folder(root, run), step, (prompt_id, attempt), response, start)))

    return routes


async def _with_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


async def _refused(request: Request, error: Exception) -> Response:
    return Json({"error": str(error)}, status_code=404)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
