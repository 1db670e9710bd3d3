"""A model hub on loopback: what the hub library asks for, served from memory, with the faults of real hubs."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]
_JSON = {"Content-Type": "application/json"}


@dataclass
class Faults:
    """What goes wrong. Files are told by the end of their names, requests by a part of their path."""

    statuses: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)  # other bytes of the same length
    cut_after: dict[str, list[int]] = field(default_factory=dict)  # one connection each, after so many bytes
    seconds_per_block: float = 0.0
    block: int = 1 << 20


class LoopbackServer:
    """Answers by `_find`; subclasses say what there is. Notes every path asked for, and every Range."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.ranges: list[tuple[str, str]] = []
        self.sent: dict[str, int] = {}
        self.faults = Faults()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # clients are killed here

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, text: str) -> list[str]:
        """The requests that hold a text."""
        return [path for path in self.requests if text in path]

    def _find(self, path: str, query: dict[str, str]) -> tuple[Answer, str]:
        """The answer, and the name of the file that it is, if it is one."""
        raise NotImplementedError

    def _answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        url = urlsplit(request.path)
        path, query = unquote(url.path).strip("/"), dict(parse_qsl(url.query))
        if path != "api/agent-harnesses":  # the library's own curiosity
            self.requests.append(f"{path}?{unquote(url.query)}" if url.query else path)
        (status, headers, body), name = self._find(path, query)
        for part, (fault, extra) in self.faults.statuses.items():
            if part in f"{path} {name}":
                status, headers, body = fault, extra, b"{}"
        if status == 200 and name in self.faults.wrong:
            body = bytes(len(body))
        byte_range = request.headers.get("Range")
        if status == 200 and name and byte_range and with_body:
            self.ranges.append((name, byte_range))
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) if last else len(body), len(body) - 1)
            headers = headers | {"Content-Range": f"bytes {start}-{end}/{len(body)}"}
            status, body = 206, body[start : end + 1]
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if with_body:
            self._send(request, name, body)

    def _send(self, request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        cuts = self.faults.cut_after.get(name)
        end = cuts.pop(0) if cuts and body else len(body)
        for start in range(0, min(end, len(body)), self.faults.block):
            block = body[start : min(start + self.faults.block, end)]
            request.wfile.write(block)
            self.sent[name] = self.sent.get(name, 0) + len(block)
            if name and len(body) > self.faults.block:
                time.sleep(self.faults.seconds_per_block)
        if end < len(body):
            request.close_connection = True
            request.connection.close()


class HubServer(LoopbackServer):
    """`with HubServer({"owner/name": {"config.json": b"..."}}) as hub:` then HF_ENDPOINT=hub.endpoint.

    A key "owner/name@v1" is that revision, "datasets/owner/name" a dataset. Large files are redirected to another host,
    as on the real one.
    """

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__()
        self.repositories = repositories

    def _find(self, path: str, query: dict[str, str]) -> tuple[Answer, str]:
        if path.startswith("stored/"):
            _, name, sha256 = path.split("/")
            for files in self.repositories.values():
                if name in files and hashlib.sha256(files[name]).hexdigest() == sha256:
                    return (200, {"ETag": f'"{sha256[:20]}-7"', "Accept-Ranges": "bytes"}, files[name]), name
        for key, files in self.repositories.items():
            repo_id, _, revision = key.partition("@")
            commit = hashlib.sha1(key.encode()).hexdigest() if revision else self.COMMIT
            api = f"api/{repo_id}" if repo_id.startswith("datasets/") else f"api/models/{repo_id}"
            for asked in (revision or "main", commit):
                if path in (f"{api}/revision/{asked}", f"{api}/tree/{asked}"):
                    return self._list(path, repo_id, commit, files), ""
                if path.startswith(f"{repo_id}/resolve/{asked}/"):
                    name = path.removeprefix(f"{repo_id}/resolve/{asked}/")
                    return self._resolve(name, commit, files.get(name)), name
                if path.startswith(f"{api}/tree/{asked}/"):  # a folder: there are none
                    return (404, {"X-Error-Code": "EntryNotFound"}, b""), ""
            if path == api and not revision:
                return self._list(path, repo_id, commit, files), ""
        known = any(f"api/models/{key.partition('@')[0]}/revision/" in path for key in self.repositories)
        return (404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b""), ""

    def _list(self, path: str, repo_id: str, commit: str, files: dict[str, bytes]) -> Answer:
        tree = [describe_file(name, data) for name, data in files.items()]
        if "/tree/" in path:
            return 200, _JSON, json.dumps(tree).encode()
        siblings = [
            {"rfilename": f["path"], "size": f["size"], "blobId": f["oid"]}
            | ({"lfs": {"size": f["size"], "sha256": f["lfs"]["oid"], "pointerSize": 1}} if "lfs" in f else {})
            for f in tree
        ]
        info = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": commit, "private": False, "tags": []}
        body = json.dumps(info | {"siblings": siblings, "downloads": 0, "likes": 0}).encode()
        return 200, _JSON | {"X-Repo-Commit": commit}, body

    def _resolve(self, name: str, commit: str, data: bytes | None) -> Answer:
        headers = {"X-Repo-Commit": commit}
        if data is None:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        described = describe_file(name, data)
        if "lfs" not in described:
            return 200, headers | {"ETag": f'"{described["oid"]}"', "Accept-Ranges": "bytes"}, data
        sha256 = described["lfs"]["oid"]
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        elsewhere = self.endpoint.replace("127.0.0.1", "localhost")
        return 302, headers | linked | {"Location": f"{elsewhere}/stored/{name}/{sha256}"}, b""


def describe_file(name: str, data: bytes) -> dict:
    """As the hub lists it: git's hash, and the SHA-256 of what is too large for git."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    described: dict = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if name.endswith((".safetensors", ".bin", ".model", ".gguf", ".onnx")):
        described["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return described


def read_folder(folder: Path) -> dict[str, bytes]:
    """A folder's files, to be served."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
