"""Documents that are the same, or nearly: datatrove's MinHash on shingles of Chinese characters and English words.

In: documents that an earlier stage kept. Out: for each task a list of the documents that leave, with the reason and
the id of the one that stays, which is always the first in the order of tasks and positions. Signatures are bucketed
and merged by datatrove (Broder 1997; https://arxiv.org/abs/2107.06499, appendix A); ours are the shingles, faster
hashes, and a check: what shares a bucket must also agree in as many of all hashes as the recipe asks for, so that no
chain of half-alike pages ties strangers together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from numpy.typing import NDArray
from pydantic import Field

from chuan.corpus.shingles import Hashes, ShingleHasher, TokenHasher, split_tokens
from chuan.recipes import Settings

_BLOCK = 512  # shingles hashed at a time: 160 hashes of 4 bytes of them stay in the second cache
_LEADERS = 8  # of one bucket that differ from each other; members like none of them are left to other buckets
_KEY_BITS = np.uint64(3)  # datatrove's 64-bit buckets hold numbers below 2^61 - 1


class NearDuplicateSettings(Settings):
    """Which documents count as the same text.

    A pair of similarity s shares a bucket in 1 - (1 - s^rows)^bands of cases: 0.97 at 0.8, 0.7 at 0.7, 0.08 at 0.5.
    """

    enabled: bool = True  # without it, only texts that are the same to the letter
    # 5 words: RefinedWeb (https://arxiv.org/abs/2306.01116, appendix G.3.1) and FineWeb; in Chinese, 5 characters.
    shingle: int = Field(default=5, ge=1, le=50)
    # FineWeb's 14 x 8 finds 92 % of the pairs at 0.8 (https://arxiv.org/abs/2406.17557); 20 x 8 finds 97 %.
    bands: int = Field(default=20, ge=1, le=200)
    rows: int = Field(default=8, ge=1, le=50)
    # Of the estimate from all hashes, whose standard deviation is 0.03: below it is 0.1 % of the pairs at 0.8.
    min_similarity: float = Field(default=0.7, ge=0, le=1)
    min_shingles: int = Field(default=10, ge=1)  # in shorter texts one word is what the text is about


def signature_type(settings: NearDuplicateSettings) -> np.dtype[np.void]:
    """What is kept of each document: a digest of its letters and the low 16 bits of each smallest hash."""
    return np.dtype([("digest", "<u8", 2), ("hashes", "<u2", settings.bands * settings.rows)])


def minhash_config(settings: NearDuplicateSettings) -> MinhashConfig:
    """Buckets as datatrove sorts and merges them, one number each; the first is for texts the same to the letter."""
    buckets = 1 + (settings.bands if settings.enabled else 0)
    return MinhashConfig(settings.shingle, buckets, 1, hash_config=HashConfig(precision=64))


class _Tokenizer(WordTokenizer):
    """datatrove asks for one when a step is built; those of its languages need spacy or nltk."""

    def word_tokenize(self, text: str) -> list[str]:
        return split_tokens(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class WriteSignatures(MinhashDedupSignature):
    """Writes, for each document, its buckets (datatrove's files), its signature, and its id."""

    def __init__(self, settings: NearDuplicateSettings, folder: str) -> None:
        super().__init__(f"{folder}/buckets", minhash_config(settings), _Tokenizer())
        self.settings = settings
        self.folder = Path(folder)
        self._tokens, self._shingles = TokenHasher(), ShingleHasher()
        # h(x) = a x + b modulo 2^32, a odd: a bijection, and x is well mixed already.
        random = np.random.RandomState(1)
        count = settings.bands * settings.rows
        self._factors = (random.randint(0, 1 << 32, count, np.uint64) | np.uint64(1)).astype(np.uint32)
        self._terms = random.randint(0, 1 << 32, count, np.uint64).astype(np.uint32)
        self._record = np.zeros(1, signature_type(settings))

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        for name in ("signatures", "ids"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with (
            (self.folder / "signatures" / f"{rank:05d}.bin").open("wb") as signatures,
            (self.folder / "ids" / f"{rank:05d}.jsonl").open("w", encoding="utf-8") as ids,
        ):

            def describe() -> Iterator[Document]:
                for document in data:
                    yield document  # datatrove takes its shingles and its signature before it asks for the next
                    signatures.write(self._record.tobytes())
                    ids.write(json.dumps(document.id) + "\n")

            super().run(describe(), rank, world_size)

    def get_shingles(self, text: str) -> Hashes:
        """(N - n + 1, 1), or one number made of all letters where there are too few to compare."""
        digest = xxhash.xxh3_128_intdigest("".join(text.split()).encode("utf-8", "surrogatepass"))
        self._record["digest"] = divmod(digest, 1 << 64)
        if self.settings.enabled:
            tokens = self._tokens.hash(split_tokens(text))
            shingles = self._shingles.hash(self._shingles.sum_prefixes(tokens), self.settings.shingle)
            if len(shingles) >= self.settings.min_shingles:
                return shingles.reshape(-1, 1)
        return np.full((1, 1), digest % (1 << 64), np.uint64)

    def get_signature(self, shingles: Hashes) -> list[list[int]]:
        """One list for each bucket, of one number: a digest of the smallest hashes of its band."""
        smallest = self.find_smallest(shingles)
        self._record["hashes"] = smallest.astype(np.uint16)
        keys = [self._record["digest"][0, 1] >> _KEY_BITS]
        if self.settings.enabled:
            rows = smallest.reshape(self.settings.bands, self.settings.rows)
            keys += [np.uint64(xxhash.xxh3_64_intdigest(row.tobytes())) >> _KEY_BITS for row in rows]
        return [[int(key)] for key in keys]

    def find_smallest(self, shingles: Hashes) -> NDArray[np.uint32]:
        """(N, 1) -> (bands x rows,): the smallest value of each hash function."""
        values = (shingles >> np.uint64(32)).astype(np.uint32)
        smallest = np.full(len(self._factors), 0xFFFFFFFF, np.uint32)
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK] * self._factors
            block += self._terms
            np.minimum(smallest, block.min(axis=0), out=smallest)
        return smallest


class FindClusters(PipelineStep):
    """One task: joins the pairs of all buckets and writes who leaves, to `removed/RANK.jsonl`.

    Memory grows with the duplicates (about 0.5 kB each), not with the documents.
    """

    type = "Dedup"
    name = "Clusters"

    def __init__(self, settings: NearDuplicateSettings, folder: str) -> None:
        super().__init__()
        self.settings = settings
        self.folder = Path(folder)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        signatures = _Signatures(self.folder / "signatures", self.settings)
        clusters = _Clusters()
        for path in sorted((self.folder / "pairs").glob("*.dups")):
            pairs = np.fromfile(path, "<u4").reshape(-1, 4).astype(np.uint64)
            for first, second in _check_pairs(*_find_groups(pairs), signatures, self.settings.min_similarity):
                clusters.join(first, second)
        removed = clusters.list_removed()
        ids = self._read_ids({first for _, first in removed})
        (self.folder / "removed").mkdir(parents=True, exist_ok=True)
        documents: dict[int, list[tuple[int, int]]] = {}
        for document, first in removed:
            documents.setdefault(document >> 32, []).append((document, first))
        for task, leaving in documents.items():
            members = np.array(leaving, np.uint64)
            exact = signatures.are_equal(members[:, 0], members[:, 1])
            with (self.folder / "removed" / f"{task:05d}.jsonl").open("w", encoding="utf-8") as file:
                for (document, first), same in zip(leaving, exact, strict=True):
                    reason = "exact_duplicate" if same else "near_duplicate"
                    line = {"document": document & 0xFFFFFFFF, "reason": reason, "duplicate_of": ids[first]}
                    file.write(json.dumps(line) + "\n")

    def _read_ids(self, wanted: set[int]) -> dict[int, str]:
        ids = {}
        for path in sorted((self.folder / "ids").glob("*.jsonl")):
            task = int(path.stem) << 32
            with path.open(encoding="utf-8") as lines:
                ids.update({task | i: json.loads(line) for i, line in enumerate(lines) if task | i in wanted})
        return ids


class Removals:
    """Who leaves of one task, asked for document by document in order."""

    def __init__(self, folder: str, rank: int) -> None:
        path = Path(folder, "removed", f"{rank:05d}.jsonl")
        self._lines = self._read(path)
        self._next = next(self._lines, None)

    def take(self, position: int) -> dict[str, Any] | None:
        """The reason and the id of the twin, or None for a document that stays."""
        if self._next is None or self._next["document"] != position:
            return None
        found, self._next = self._next, next(self._lines, None)
        return {"reason": found["reason"], "duplicate_of": found["duplicate_of"]}

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)


class _Signatures:
    """The signatures of all documents, mapped; a document is its task x 2^32 + its position."""

    def __init__(self, folder: Path, settings: NearDuplicateSettings) -> None:
        self._type = signature_type(settings)
        self._tasks = {int(path.stem): path for path in folder.glob("*.bin")}

    def read(self, documents: Hashes) -> NDArray[np.void]:
        records = np.empty(len(documents), self._type)
        tasks = documents >> np.uint64(32)
        for task in np.unique(tasks):
            chosen = tasks == task
            mapped = np.memmap(self._tasks[int(task)], self._type, "r")
            records[chosen] = mapped[(documents[chosen] & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        return records

    def are_equal(self, first: Hashes, second: Hashes) -> NDArray[np.bool_]:
        return (self.read(first)["digest"] == self.read(second)["digest"]).all(axis=1)

    def are_similar(self, first: Hashes, second: Hashes, least: float) -> NDArray[np.bool_]:
        one, other = self.read(first), self.read(second)
        similarity = (one["hashes"] == other["hashes"]).mean(axis=1)
        return (one["digest"] == other["digest"]).all(axis=1) | (similarity >= least)


class _Clusters:
    """Sets of documents; the smallest number of a set is the one that stays."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def find(self, document: int) -> int:
        root = document
        while (parent := self._parents.get(root, root)) != root:
            root = parent
        while document != root:
            self._parents[document], document = root, self._parents[document]
        return root

    def join(self, first: int, second: int) -> None:
        one, other = sorted((self.find(first), self.find(second)))
        if one != other:
            self._parents[other] = one

    def list_removed(self) -> list[tuple[int, int]]:
        """Who leaves, in order, with the one that stays."""
        return [(document, self.find(document)) for document in sorted(self._parents)]


def _find_groups(pairs: Hashes) -> tuple[Hashes, NDArray[np.int64]]:
    """The members of a bucket file and the number of their group: each pair goes on where the one before ended."""
    if not len(pairs):
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    first, second = pairs[:, 0] << np.uint64(32) | pairs[:, 1], pairs[:, 2] << np.uint64(32) | pairs[:, 3]
    begins = np.ones(len(pairs), bool)
    begins[1:] = first[1:] != second[:-1]
    # Each group is its first pair's first member, and the second member of every pair.
    members = np.insert(second, np.flatnonzero(begins), first[begins])
    starts = np.flatnonzero(begins) + np.arange(begins.sum())
    groups = np.zeros(len(members), np.int64)
    groups[starts] = 1
    return members, np.cumsum(groups)


def _check_pairs(
    members: Hashes, groups: NDArray[np.int64], signatures: _Signatures, least: float
) -> Iterator[tuple[int, int]]:
    """Pairs of a group's leader and a member that is like it; what is not becomes, or follows, another leader."""
    for _ in range(_LEADERS):
        if len(members) < 2:
            return
        begins = np.ones(len(members), bool)
        begins[1:] = groups[1:] != groups[:-1]
        leaders = members[begins][np.cumsum(begins) - 1]
        alike = np.ones(len(members), bool)
        alike[~begins] = signatures.are_similar(leaders[~begins], members[~begins], least)
        chosen = alike & ~begins
        yield from zip(leaders[chosen].tolist(), members[chosen].tolist(), strict=True)
        members, groups = members[~alike], groups[~alike]
