"""One measurement at a time in processes that stay: a program is a "side" that answers requests through its pipes.

In: lines of JSON, `{"measure": NAME, ...}`. Out: lines of JSON, one for each. Standard library only, because the peers'
Python runs it too. The driver holds `Side`; a side's script calls `serve` with its functions.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class SideError(RuntimeError):
    """A side could not measure, and said why."""


class Side:
    """A measuring process, by name; `ask` waits for its answer, so that two never compute at once."""

    def __init__(self, name: str, python: str, script: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = [python, str(Path(__file__).with_name(script))]
        self._environment = os.environ | (environment or {})
        self._process: subprocess.Popen[str] | None = None
        self.model: dict[str, Any] | None = None  # what the process has loaded

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def process_id(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def ask(self, measure: str, **arguments: Any) -> dict[str, Any]:
        """Starts the process if there is none; raises SideError with what it said if it fails."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"measure": measure, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._process = self.model = None
            raise SideError(f"{self.name} ended with code {code} while asked for {measure}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.name}, {measure}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process, so that its memory is free."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = self.model = None


def serve(functions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers requests until the pipe closes; what libraries print goes to stderr, not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        try:
            answer = functions[request.pop("measure")](**request)
        except Exception as error:  # whatever it was, the driver shall hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        # Pages that had to come from the disk: a measurement in which there were many was one of the disk.
        answer["major_faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
