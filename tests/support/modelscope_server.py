"""ModelScope on loopback: what its library asks for, served from memory, with the faults of real hubs."""

from __future__ import annotations

import hashlib
import json
import re

from tests.support.hub_server import Answer, LoopbackServer

_PATH = re.compile(r"api/v1/models/([^/]+/[^/]+)/(repo|repo/files)")


class ModelScopeServer(LoopbackServer):
    """`with ModelScopeServer({"owner/name": {...}}) as hub:` then MODELSCOPE_ENDPOINT=hub.endpoint."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__()
        self.repositories = repositories  # a key "owner/name@v1" is that revision

    def _find(self, path: str, query: dict[str, str]) -> tuple[Answer, str]:
        found = _PATH.fullmatch(path)
        if found is None:
            return (404, {}, b""), ""
        revision = query.get("Revision", "master")
        files = self.repositories.get(found[1] if revision == "master" else f"{found[1]}@{revision}")
        if files is None:
            return (404, {}, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode()), ""
        if found[2] == "repo":
            name = query.get("FilePath", "")
            data = files.get(name)
            return ((404, {}, b"") if data is None else (200, {"Accept-Ranges": "bytes"}, data)), name
        listing = [
            {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
        body = json.dumps({"Code": 200, "Data": {"Files": listing}, "Message": "", "Success": True}).encode()
        return (200, {"Content-Type": "application/json"}, body), ""
