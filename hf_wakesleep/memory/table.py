"""CodeTable: codes with their labels and tasks, one row each, as they stand in a file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features, Value

from .budget import ranks_within

INDEX_BYTES = 4  # per code: its length, label and task, which the file packs into 1 to 3


@dataclass(frozen=True)
class CodeTable:
    """Codes with their labels and tasks.

    Args:
        codes (`pa.LargeBinaryArray` of length M): The codes.
        labels (`numpy.ndarray` of shape `(M,)`): Label of every code, int64.
        tasks (`numpy.ndarray` of shape `(M,)`): Number of the task of every code, int32.
    """

    codes: pa.LargeBinaryArray
    labels: np.ndarray
    tasks: np.ndarray

    @classmethod
    def of(cls, codes: Sequence[bytes] = (), labels: Sequence[int] = (), task: int = 0) -> "CodeTable":
        """Return the table of codes of one task."""
        labels = np.asarray(labels, dtype=np.int64)
        return cls(pa.array(codes, pa.large_binary()), labels, np.full(len(labels), task, dtype=np.int32))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "CodeTable":
        """Return the table that [`to_arrow`] turned into one of Arrow."""
        return cls(
            table["code"].combine_chunks().cast(pa.large_binary()),
            table["label"].to_numpy().astype(np.int64),
            table["task"].to_numpy().astype(np.int32),
        )

    def to_arrow(self, classes: Sequence[str]) -> pa.Table:
        """Return a table of Arrow that names the labels."""
        columns = [self.codes, pa.array(self.labels), pa.array(self.tasks)]
        return pa.Table.from_arrays(columns, schema=schema_of(classes))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of every code, int64 of shape (M,)."""
        return np.diff(self._ends()) if len(self) else np.zeros(0, dtype=np.int64)

    def followed_by(self, other: "CodeTable") -> "CodeTable":
        """Return the rows of this table and then those of another."""
        return CodeTable(
            pa.chunked_array([self.codes, other.codes]).combine_chunks(),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.tasks, other.tasks]),
        )

    def take(self, rows: np.ndarray) -> "CodeTable":
        """Return the rows at some positions; the table itself, not a copy, if these are all in order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return CodeTable(self.codes.take(pa.array(rows, pa.int64())), self.labels[rows], self.tasks[rows])

    def turns(self) -> np.ndarray:
        """Return how many codes of the same class and task stand before each, int64 of shape (M,)."""
        groups = self.labels * (int(self.tasks.max(initial=0)) + 1) + self.tasks  # (M,)
        order = np.argsort(groups, kind="stable")
        turns = np.zeros(len(self), dtype=np.int64)
        turns[order] = ranks_within(groups[order])
        return turns

    def order(self, turns: np.ndarray) -> np.ndarray:
        """Return the positions of codes by class and, within a class, by turns of its tasks; int64 of shape (M,)."""
        return np.lexsort((self.tasks, turns, self.labels))

    def is_ordered(self) -> bool:
        """Whether the codes stand by class and, within a class, in turns of its tasks."""
        return bool((self.order(self.turns()) == np.arange(len(self))).all())

    def digests(self) -> np.ndarray:
        """Return 64 bits of a digest of every code, unsigned, of shape (M,)."""
        content, digests = memoryview(self.codes.buffers()[2] or b""), bytearray()
        for start, end in pairwise(self._ends().tolist()) if len(self) else ():
            digests += hashlib.blake2b(content[start:end], digest_size=8).digest()
        return np.frombuffer(bytes(digests), dtype=">u8")

    def _ends(self) -> np.ndarray:
        """Return where codes end in their buffer, after where the first starts: (M + 1,)."""
        return np.frombuffer(self.codes.buffers()[1], dtype=np.int64)[self.codes.offset :][: len(self) + 1]


def schema_of(classes: Sequence[str]) -> pa.Schema:
    """Return the columns of a table of codes of these classes, as `datasets` describes them."""
    features = {"code": Value("large_binary"), "label": ClassLabel(names=list(classes)), "task": Value("int32")}
    return Features(features).arrow_schema
