"""What a corpus is built of: stages, each a datatrove pipeline over folders of documents.

A document is datatrove's (`text`, `id`, `metadata`); its metadata holds `source` (the name in the recipe) and, once it
is known, `language`. A document that leaves carries `reason` (`rule:too_short`, `near_duplicate` ...). Which tasks a
stage has is fixed by the recipe, never by how many workers run them, so that its output does not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


@dataclass(frozen=True)
class Stage:
    """One pass of a pipeline. `tasks` ranks run it; stages run one after the other."""

    name: str
    steps: Sequence[PipelineStep]
    tasks: int


def read_documents(folder: str) -> JsonlReader:
    """The documents that an earlier stage kept: each rank reads the files whose turn it is."""
    # add_file_path would write where the folder lies into every document
    return JsonlReader(folder, compression="zstd", glob_pattern="*.jsonl.zst", add_file_path=False)


def write_documents(folder: str) -> JsonlWriter:
    """Writes documents to one file a rank."""
    return _DocumentWriter(folder, output_filename="${rank}.jsonl.zst", compression="zstd")


class _DocumentWriter(JsonlWriter):
    """datatrove's copies each document deeply first, which takes a third of the time."""

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text, "id": document.id, "metadata": document.metadata}
