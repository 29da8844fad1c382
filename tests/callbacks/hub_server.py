"""A local server that speaks as much of the hub's protocol as an upload needs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD, READER = "hf_goodgoodgoodgoodgoodgood", "hf_readreadreadreadreadread"
"""Tokens: one that may write, and one that may only read."""


class HubServer(ThreadingHTTPServer):
    """Repositories by name, each with its visibility, and its files by branch."""

    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.broken = False
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        files: dict[str, bytes] = self.repositories[name]["branches"][branch]
        return files


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        path = self.path.partition("?")[0]
        if token not in (GOOD, READER):
            return self.answer(401, {"error": "Invalid username or password."})
        if self.command == "POST" and token == READER and "validate-yaml" not in path:
            return self.answer(403, {"error": f"You don't have the rights, {token}"})
        if self.server.broken and "/commit/" in path:
            return self.answer(500, {"error": "Internal Error - we're working on it"})
        for pattern, method in ROUTES.items():
            if match := re.fullmatch(pattern, path):
                return method(self, body, *match.groups())
        return self.answer(404, {"error": f"no route {path}"})

    do_GET = do_POST = handle_any

    def answer(self, status: int, content: Any, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        if name in self.server.repositories:
            return self.answer(409, {"error": "You already created it", "url": f"{self.server.address}/{name}"})
        made = {"visibility": wanted.get("visibility"), "branches": {"main": {".gitattributes": b""}}}
        self.server.repositories[name] = made
        return self.answer(200, {"url": f"{self.server.address}/{name}"})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        self.server.repositories[name]["branches"].setdefault(branch, dict(self.server.files(name)))
        self.answer(200, {})

    def tree(self, body: bytes, name: str, branch: str) -> None:
        if name not in self.server.repositories:
            return self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        entries = [{"type": "file", "path": file, "oid": "0", "size": 1} for file in self.server.files(name, branch)]
        return self.answer(200, entries)

    def info(self, body: bytes, name: str) -> None:
        if name not in self.server.repositories:
            return self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        return self.answer(200, {"id": name, "sha": "0" * 40, "siblings": [], "private": True})

    def preupload(self, body: bytes, name: str, branch: str) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
        self.answer(200, {"files": files})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        files = self.server.files(name, branch)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        address = f"{self.server.address}/{name}/commit/{'1' * 40}"
        self.answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": address})

    def validate(self, body: bytes) -> None:
        self.answer(200, {"warnings": [], "errors": []})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: dict[str, Callable[..., None]] = {
    "/api/repos/create": Handler.create,
    "/api/validate-yaml": Handler.validate,
    rf"/api/models/{NAME}/branch/([\w.-]+)": Handler.branch,
    rf"/api/models/{NAME}/tree/([\w.-]+)": Handler.tree,
    rf"/api/models/{NAME}/preupload/([\w.-]+)": Handler.preupload,
    rf"/api/models/{NAME}/commit/([\w.-]+)": Handler.commit,
    rf"/api/models/{NAME}(?:/revision/[\w.-]+)?": Handler.info,
}
