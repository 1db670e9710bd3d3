"""The folder of a run: what was asked, each answer as soon as it is there, and at the end what came of it.

In: a plan and rows. Out: plan.json, questions.jsonl, run.json. A run that was killed goes on: a row is one line,
written whole or found cut and taken off; the plan says whether it is the same run. Each file but the log is whole or
not there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from chuan.errors import ChuanError
from chuan.json_file import read_json, read_json_if_there, render_json, save_json
from chuan.staging import staged_file

FORMAT = "chuan-run-1"


class RunFolder:
    """`with RunFolder(path, plan) as run:` one process at a time. `rows` are the answers so far, by (subject, id)."""

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._plan = dict(plan)
        self._descriptor = -1

    @property
    def finished(self) -> dict[str, Any] | None:
        """run.json, once there is one."""
        return read_json_if_there(self.path / "run.json") or None

    def __enter__(self) -> RunFolder:
        log = self.path / "questions.jsonl"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ChuanError(f"{self.path} cannot be written: {error.strerror}; choose another --output") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise ChuanError(
                f"another process is writing {self.path}; wait for it, or choose another --output"
            ) from None
        try:
            self._check_plan()
            self._read_log(log)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def append(self, row: dict[str, Any]) -> None:
        """One answer; it is the system's to keep from here on, whatever becomes of this process."""
        os.write(self._descriptor, (render_json(row) + "\n").encode())
        self.rows[row["subject"], row["id"]] = row

    def finish(self, order: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> None:
        """The log in the order of the questions, then run.json, whose presence says that all is there."""
        with staged_file(self.path / "questions.jsonl") as path:
            path.write_text("".join(render_json(self.rows[key]) + "\n" for key in order), encoding="utf-8")
        with staged_file(self.path / "run.json") as path:
            save_json(path, facts)

    def _check_plan(self) -> None:
        path = self.path / "plan.json"
        if not path.is_file():
            with staged_file(path) as staged:
                save_json(staged, self._plan)
            return
        known, asked = read_json(path), json.loads(json.dumps(self._plan))
        changed = [name for name in {**known, **asked} if known.get(name) != asked.get(name)]
        if changed:
            raise ChuanError(
                f"{self.path} holds a run of another {', '.join(changed)}; choose another --output or remove it"
            )

    def _read_log(self, log: Path) -> None:
        content = log.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._descriptor, whole)  # a line that a kill cut short
        try:
            for line in content[:whole].decode("utf-8").split("\n")[:-1]:
                row = json.loads(line)
                self.rows[row["subject"], row["id"]] = row
        except (ValueError, KeyError, TypeError):
            raise ChuanError(f"{log} is damaged; remove {self.path} and evaluate again") from None
