"""A model hub on loopback: what the hub library asks for, served from memory."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubServer:
    """`with HubServer({"owner/name": {"config.json": b"..."}}) as hub:` then HF_ENDPOINT=hub.endpoint."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        self.requests.append(path)
        status, headers, body = self._find(path)
        byte_range = request.headers.get("Range")
        if status == 200 and byte_range and byte_range.startswith("bytes="):
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(body) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            status, body = 206, body[start : end + 1]
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)

    def _find(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for name, files in self.repositories.items():
            if path.startswith(f"api/models/{name}/tree/"):
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
            if path in (f"api/models/{name}", f"api/models/{name}/revision/main"):
                siblings = [{"rfilename": file} for file in files]
                info = {"_id": "1", "id": name, "modelId": name, "sha": self.COMMIT, "private": False, "tags": []}
                body = json.dumps(info | {"siblings": siblings, "downloads": 0, "likes": 0}).encode()
                return 200, {"Content-Type": "application/json", "X-Repo-Commit": self.COMMIT}, body
            for revision in ("main", self.COMMIT):
                prefix = f"{name}/resolve/{revision}/"
                if path.startswith(prefix):
                    data = files.get(path.removeprefix(prefix))
                    if data is None:
                        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.COMMIT}, b""
                    etag = hashlib.sha256(data).hexdigest()
                    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.COMMIT, "Accept-Ranges": "bytes"}, data
            if path.startswith(f"api/models/{name}/revision/"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        return 404, {"X-Error-Code": "RepoNotFound"}, b""


def read_folder(folder: Path) -> dict[str, bytes]:
    """A folder's files, to be served."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
