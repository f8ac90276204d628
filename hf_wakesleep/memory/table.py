"""CodeTable: codes with their labels and tasks, one row each, as they are saved in `codes.parquet`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features, Value

from .budget import rank_within_groups

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
    def from_codes(cls, codes: Sequence[bytes] = (), labels: Sequence[int] = (), task: int = 0) -> "CodeTable":
        """Return the table of codes of one task."""
        labels = np.asarray(labels, dtype=np.int64)
        return cls(pa.array(codes, pa.large_binary()), labels, np.full(len(labels), task, dtype=np.int32))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "CodeTable":
        """Return the table of what [`CodeTable.to_arrow`] returned."""
        return cls(
            table["code"].combine_chunks().cast(pa.large_binary()),
            table["label"].to_numpy().astype(np.int64),
            table["task"].to_numpy().astype(np.int32),
        )

    def to_arrow(self, classes: Sequence[str]) -> pa.Table:
        """Return an Arrow table whose labels are named."""
        columns = [self.codes, pa.array(self.labels), pa.array(self.tasks)]
        return pa.Table.from_arrays(columns, schema=arrow_schema(classes))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of every code, int64 of shape (M,)."""
        return np.diff(self._offsets()) if len(self) else np.zeros(0, dtype=np.int64)

    def concat(self, other: "CodeTable") -> "CodeTable":
        """Return the rows of this table and then those of another."""
        return CodeTable(
            pa.chunked_array([self.codes, other.codes]).combine_chunks(),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.tasks, other.tasks]),
        )

    def take(self, rows: np.ndarray) -> "CodeTable":
        """Return the rows at some positions; the table itself, not a copy, if these are all rows in order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return CodeTable(self.codes.take(pa.array(rows, pa.int64())), self.labels[rows], self.tasks[rows])

    def ranks_in_task(self) -> np.ndarray:
        """Return the rank of each code among those of its class and task, from 0; int64 of shape (M,)."""
        groups = self.labels * (int(self.tasks.max(initial=0)) + 1) + self.tasks  # (M,)
        order = np.argsort(groups, kind="stable")
        ranks = np.zeros(len(self), dtype=np.int64)
        ranks[order] = rank_within_groups(groups[order])
        return ranks

    def interleave(self, ranks: np.ndarray) -> np.ndarray:
        """Return the order by class, then rank, then task, so that tasks of a class alternate; int64 (M,)."""
        return np.lexsort((self.tasks, ranks, self.labels))

    def is_ordered(self) -> bool:
        """Whether codes are sorted by class and the tasks of a class alternate."""
        return bool((self.interleave(self.ranks_in_task()) == np.arange(len(self))).all())

    def digests(self) -> np.ndarray:
        """Return a digest of every code, 64 bits, unsigned, of shape (M,)."""
        content, digests = memoryview(self.codes.buffers()[2] or b""), bytearray()
        for start, end in pairwise(self._offsets().tolist()) if len(self) else ():
            digests += hashlib.blake2b(content[start:end], digest_size=8).digest()
        return np.frombuffer(bytes(digests), dtype=">u8")

    def _offsets(self) -> np.ndarray:
        """Return where codes start in their buffer, and where the last one ends: (M + 1,)."""
        return np.frombuffer(self.codes.buffers()[1], dtype=np.int64)[self.codes.offset :][: len(self) + 1]


def arrow_schema(classes: Sequence[str]) -> pa.Schema:
    """Return the columns of a table of codes of these classes, as `datasets` describes them."""
    features = {"code": Value("large_binary"), "label": ClassLabel(names=list(classes)), "task": Value("int32")}
    return Features(features).arrow_schema
