"""SemiParametricMemory: a table of codes under a budget in bytes, with the codec that turns them back into images."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Features, Value
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .balance import BalancedDraw
from .codec import Codec, CodecError
from .codecs import make_codec
from .configuration_wakesleep import check_class_names
from .digests_wakesleep import DIGESTS_NAME, MEMORY_FILES, check_digests, file_digest
from .files import read_json
from .synapses import SYNAPSES_NAME, Synapses

INDEX_BYTES = 8  # per code: its length, label and task
LABEL_BYTES = 12  # per class: its entry, and that of a task, in the dictionaries of the file
FILE_BYTES = 1024  # what a parquet file with rows holds beyond one without, and memory.json

CODES_NAME, CODEC_NAME, MEMORY_NAME = "codes.parquet", "codec.safetensors", "memory.json"
SEALED = (CODES_NAME, CODEC_NAME, SYNAPSES_NAME)  # their digests stand in memory.json
KEYS = {"codec", "settings", "budget", "statistics_bytes", "sha256"}  # of memory.json


@dataclass(frozen=True)
class MemoryBytes:
    """Accounting of everything learned from the stream that must be kept to go on, in bytes.

    Args:
        codes (`int`): The codes themselves.
        index (`int`): Length, label and task of every code, class names, file headers.
        codec (`int`): Weights of a codec that was fitted to the stream.
        statistics (`int`): What the model keeps beside its weights, such as recall's statistics.
        masks (`int`): Which weights are frozen.
    """

    codes: int
    index: int
    codec: int
    statistics: int
    masks: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.codes + self.index + self.codec + self.statistics + self.masks

    def to_dict(self) -> dict[str, int]:
        """Return all parts and their total."""
        return {**asdict(self), "total": self.total}


class SemiParametricMemory:
    """Codes of images, balanced over classes and never above the budget.

    Codes stand ordered by class and, within a class, by a digest of their bytes. When the budget is full every class
    keeps the first of its codes in that order, which is a uniform sample of all its images whatever the order they
    came in (reservoir sampling without a random state).

    Args:
        codec ([`Codec`]): Turns images into codes and back.
        budget (`int`, *optional*): Bytes that `num_bytes.total` may not exceed. `None` for no limit.
        classes (`Sequence[str]`, *optional*): Names of the classes, in the order of their labels.

    Attributes:
        synapses ([`Synapses`], *optional*): Which weights of the network are frozen; `None` where none ever are.
    """

    def __init__(self, codec: Codec, budget: int | None = None, classes: Sequence[str] = ()):
        self.codec = codec
        self.budget = budget
        self.classes = list(classes)
        self.statistics_bytes = 0
        self.synapses: Synapses | None = None
        self._codes = pa.array([], pa.large_binary())
        self._labels = np.zeros(0, dtype=np.int64)
        self._tasks = np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_bytes(self) -> MemoryBytes:
        """What the memory takes now."""
        return MemoryBytes(
            codes=int(self._code_sizes().sum()),
            index=INDEX_BYTES * len(self) + self._file_bytes(),
            codec=self.codec.num_bytes,
            statistics=self.statistics_bytes,
            masks=self._masks_bytes,
        )

    @property
    def protocol(self) -> dict:
        """What two runs must share so that one can go on with the memory of the other, JSON-able."""
        codec = {"codec": self.codec.name, **self.codec.settings(), "fitted": self.codec.digest()}
        return {**codec, "budget": self.budget}

    @property
    def labels(self) -> np.ndarray:
        """Label of every code, int64 of shape (M,)."""
        return self._labels

    @property
    def tasks(self) -> np.ndarray:
        """Number of the task of every code, int32 of shape (M,)."""
        return self._tasks

    def add_classes(self, classes: Sequence[str], statistics_bytes: int) -> None:
        """Make room for new classes, whose codes may come next.

        Args:
            classes (`Sequence[str]`): Their names.
            statistics_bytes (`int`): Bytes that the model now keeps beside its weights; they count in the budget.

        Raises:
            ValueError: If the budget cannot hold a code of every class any more; nothing is changed then.
        """
        self._change(classes=self.classes + list(classes), statistics_bytes=statistics_bytes)

    def set_budget(self, budget: int | None) -> None:
        """Set another budget and, if it is smaller, drop what it does not hold.

        Raises:
            ValueError: If it cannot hold a code of every class; nothing is changed then.
        """
        self._change(budget=budget)

    def set_synapses(self, synapses: Synapses | None) -> None:
        """Set which weights are frozen and, if that takes more bytes than before, drop codes that make room for it.

        Raises:
            ValueError: If the budget cannot hold a code of every class any more; nothing is changed then.
        """
        self._change(synapses=synapses)

    def write(self, codes: Sequence[bytes], labels: Sequence[int], task: int) -> None:
        """Add codes of one task, then shrink all classes alike until the budget holds.

        Args:
            codes (`Sequence[bytes]`): What `codec.encode` returned.
            labels (`Sequence[int]`): Their classes, as positions in `classes`.
            task (`int`): Number of the task, from 0.

        Raises:
            ValueError: If a label is unknown, or the budget cannot hold one code of every class; the memory stays as
                it was.
        """
        labels = np.asarray(labels, dtype=np.int64)
        if len(codes) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes)):
            raise ValueError(
                f"Expected one label in 0..{len(self.classes) - 1} per code, got {len(codes)} codes and labels "
                f"{sorted(set(labels.tolist()))}. Add the classes first."
            )
        self._set(
            pa.chunked_array([self._codes, pa.array(codes, pa.large_binary())]),
            np.concatenate([self._labels, labels]),
            np.concatenate([self._tasks, np.full(len(labels), task, dtype=np.int32)]),
        )

    def codes(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the codes at some positions in 0..M-1."""
        return self._codes.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist()

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode some memories.

        Args:
            indices (`Sequence[int]`): Positions in 0..M-1.

        Returns:
            `tuple`: Images (B, 3, H, W) uint8 and labels (B,) int64.

        Raises:
            CodecError: If a code is corrupt.
        """
        indices = np.asarray(indices, dtype=np.int64)
        images = self.codec.decode(self.codes(indices))
        sizes = sorted({tuple(image.shape) for image in images})
        if len(sizes) > 1:
            raise CodecError(f"Expected codes of images of one size, got {sizes[:5]}.")
        return torch.stack(images), torch.from_numpy(self._labels[indices])  # (B, 3, H, W), (B,)

    def balanced(self, among: np.ndarray | None = None) -> BalancedDraw:
        """Return a [`BalancedDraw`] of memories as they are now.

        Args:
            among (`numpy.ndarray`, *optional*): Sorted positions to draw from; all if missing.
        """
        return BalancedDraw(self._labels, among)

    def checksum(self) -> int:
        """Return a number that differs, almost surely, if codes, labels, tasks, class names or synapses do."""
        total = zlib.crc32("\n".join(self.classes).encode())
        for column in (self._labels, self._tasks, self._code_sizes()):
            total = zlib.crc32(np.ascontiguousarray(column), total)
        for code in self._codes:
            total = zlib.crc32(code.as_buffer(), total)
        return total if self.synapses is None else self.synapses.checksum(total)

    def save(self, folder: str | Path) -> None:
        """Write `codes.parquet`, `memory.json` and, where there are any, codec weights and synapses."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_parquet(self._table(), folder / CODES_NAME)
        weights = self.codec.state_dict()
        if weights:
            save_file(weights, folder / CODEC_NAME)
        if self.synapses is not None:
            self.synapses.save(folder / SYNAPSES_NAME)
        settings = {
            "codec": self.codec.name,
            "settings": self.codec.settings(),
            "budget": self.budget,
            "statistics_bytes": self.statistics_bytes,
            "sha256": {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name in SEALED},
        }
        (folder / MEMORY_NAME).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "SemiParametricMemory":
        """Read what `save` wrote.

        Raises:
            ValueError: If a file is missing or does not hold a memory.
        """
        folder = Path(folder).absolute()
        missing = [name for name in (CODES_NAME, MEMORY_NAME) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"Expected a memory in {folder}, but {missing} are missing. Is it a whole stage?")
        if folder.name == "memory":  # in a stage
            check_digests(folder.parent, MEMORY_FILES)
        try:
            settings = _read_settings(folder)
            weights = load_file(folder / CODEC_NAME) if (folder / CODEC_NAME).is_file() else None
            codec = make_codec(settings["codec"], state_dict=weights, **settings["settings"])
            table = _read_parquet(folder / CODES_NAME)
            memory = cls(codec, settings["budget"], Features.from_arrow_schema(table.schema)["label"].names)
            memory.statistics_bytes = settings["statistics_bytes"]
            memory.synapses = Synapses.load(folder / SYNAPSES_NAME) if (folder / SYNAPSES_NAME).is_file() else None
            memory._codes = table["code"].combine_chunks().cast(pa.large_binary())
            memory._labels = table["label"].to_numpy().astype(np.int64)
            memory._tasks = table["task"].to_numpy().astype(np.int32)
            memory._check(table.schema)
        except (
            OSError,
            RecursionError,
            pa.ArrowException,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            SafetensorError,
        ) as error:
            raise ValueError(
                f"Expected a memory in {folder}, but its files do not hold one ({error!r}). Is the download complete?"
            ) from error
        return memory

    @classmethod
    def from_pretrained(cls, name_or_path: str, **kwargs) -> "SemiParametricMemory":
        """Load the memory of a stage from its folder or from the Hub; nothing else of the stage is downloaded.

        Args:
            name_or_path (`str`): Folder of a stage, or name of a repository.
            kwargs: Passed on to `huggingface_hub.snapshot_download` (`revision`, `token`, ...).
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(name_or_path, allow_patterns=[DIGESTS_NAME, "memory/*"], **kwargs))
        return cls.load(folder / "memory")

    @property
    def _masks_bytes(self) -> int:
        return 0 if self.synapses is None else self.synapses.num_bytes

    def _code_sizes(self) -> np.ndarray:
        return (
            np.diff(np.frombuffer(self._codes.buffers()[1], dtype=np.int64)[: len(self) + 1])
            if len(self)
            else (np.zeros(0, dtype=np.int64))
        )

    def _schema(self) -> pa.Schema:
        features = {"code": Value("large_binary"), "label": ClassLabel(names=self.classes), "task": Value("int32")}
        return Features(features).arrow_schema

    def _table(self) -> pa.Table:
        columns = [self._codes, pa.array(self._labels), pa.array(self._tasks)]
        return pa.Table.from_arrays(columns, schema=self._schema())

    def _file_bytes(self) -> int:
        sink = pa.BufferOutputStream()
        _write_parquet(self._schema().empty_table(), sink)
        return sink.getvalue().size + FILE_BYTES + LABEL_BYTES * len(self.classes)

    def _check(self, schema: pa.Schema) -> None:
        """Refuse a table that `write` cannot have made."""
        if not schema.equals(self._schema()):
            raise ValueError(f"columns {self._schema().names} of the types of a memory expected, got {schema}")
        check_class_names(self.classes)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class comes twice")
        labels, tasks = self._labels, self._tasks
        if len(self) and not (0 <= labels.min() <= labels.max() < len(self.classes) and tasks.min() >= 0):
            raise ValueError(f"labels in 0..{len(self.classes) - 1} and tasks from 0 expected, got others")
        if not np.array_equal(_order(pa.chunked_array([self._codes]), labels), np.arange(len(self))):
            raise ValueError("codes in the order of their classes and digests expected, got another order")
        if self.budget is not None and self.num_bytes.codes + INDEX_BYTES * len(self) > self.budget:
            raise ValueError(f"at most {self.budget:,} bytes of codes expected, got {self.num_bytes.codes:,}")

    def _change(self, **attributes) -> None:
        """Set attributes and drop what the budget then does not hold; set none if it cannot hold enough."""
        before = {name: vars(self)[name] for name in attributes}
        vars(self).update(attributes)
        try:
            self._set(pa.chunked_array([self._codes]), self._labels, self._tasks)
        except ValueError:
            vars(self).update(before)
            raise

    def _set(self, codes: pa.ChunkedArray, labels: np.ndarray, tasks: np.ndarray) -> None:
        """Order codes, drop what the budget does not hold, and make the rest the content of the memory."""
        order = _order(codes, labels)
        if self.budget is not None:
            sizes = pc.binary_length(codes).to_numpy()
            kept = self.codec.num_bytes + self.statistics_bytes + self._masks_bytes
            room = self.budget - self._file_bytes() - kept
            order = order[_fit(labels[order], sizes[order] + INDEX_BYTES, room, self.budget)]
        self._codes = codes.take(pa.array(order)).combine_chunks()
        self._labels, self._tasks = labels[order], tasks[order]


def _order(codes: pa.ChunkedArray, labels: np.ndarray) -> np.ndarray:
    """Return the order by class and, within a class, by a digest of the code, int64 of shape (M,)."""
    digests = bytearray()
    for chunk in codes.chunks:
        if not len(chunk):
            continue
        content = memoryview(chunk.buffers()[2] or b"")
        ends = np.frombuffer(chunk.buffers()[1], dtype=np.int64)[chunk.offset :][: len(chunk) + 1].tolist()
        for start, end in pairwise(ends):
            digests += hashlib.blake2b(content[start:end], digest_size=8).digest()
    return np.lexsort((np.frombuffer(bytes(digests), dtype=">u8"), labels)).astype(np.int64)


def _fit(labels: np.ndarray, sizes: np.ndarray, room: int, budget: int) -> np.ndarray:
    """Return which codes to keep so that their sizes add up to at most `room`, bool of shape (M,).

    Every class keeps its first k codes, with the largest k that fits; what is left goes to one more code of each class
    in turn, where it still fits. If not even the first of each fit, every class keeps its smallest.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Sorted labels.
        sizes (`numpy.ndarray` of shape `(M,)`): Bytes of each code with its index.
        room (`int`): Bytes to fill.
        budget (`int`): The whole budget, for the error.

    Raises:
        ValueError: If not even one code of every class fits.
    """
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    rank = np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))  # (M,) within its class
    cumulative = np.cumsum(np.bincount(rank, weights=sizes)) if len(rank) else np.zeros(0)  # bytes of k + 1 per class
    per_class = int(np.searchsorted(cumulative, room, side="right"))
    smallest = np.lexsort((sizes, labels))[starts]  # (K,) the smallest code of each class
    minimum = int(sizes[smallest].sum())
    if room < minimum:
        raise ValueError(
            f"`memory_budget` must hold at least one code per class: {minimum:,} bytes of codes for {len(starts)} "
            f"classes and {budget - room:,} bytes for statistics, masks, codec and file headers, got {budget:,}. "
            "Raise it to hold them, or pass a codec with smaller codes."
        )
    if per_class == 0:
        return np.isin(np.arange(len(labels)), smallest)
    keep = rank < per_class
    left = room - int(sizes[keep].sum())
    for position in np.flatnonzero(rank == per_class):
        if sizes[position] <= left:
            keep[position] = True
            left -= int(sizes[position])
    return keep


def _write_parquet(table: pa.Table, where) -> None:
    pq.write_table(table, where, compression="none", use_dictionary=["label", "task"], write_statistics=False)


def _read_settings(folder: Path) -> dict:
    """Read memory.json, and compare the files beside it with the digests in it."""
    settings = read_json(folder / MEMORY_NAME)
    if set(settings) != KEYS:
        raise ValueError(f"{MEMORY_NAME} with the keys {sorted(KEYS)} expected, got {sorted(settings)[:9]}")
    for name in ("budget", "statistics_bytes"):
        value = settings[name]
        if not (type(value) is int and 0 <= value < 2**63) and not (name == "budget" and value is None):
            raise ValueError(f"a number of bytes expected as {name!r}, got {value!r}")
    digests = {name: file_digest(folder / name) for name in SEALED if (folder / name).is_file()}
    if settings["sha256"] != digests:
        raise ValueError(f"{' or '.join(digests)} is not the file that was written with {MEMORY_NAME}")
    return settings


def _read_parquet(path: Path) -> pa.Table:
    """Read the table of codes, unless it would take more memory than the file is long."""
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            is_dictionary = any("DICTIONARY" in encoding for encoding in chunk.encodings)
            if chunk.compression != "UNCOMPRESSED" or (chunk.path_in_schema == "code" and is_dictionary):
                raise ValueError(f"plain columns expected, but {chunk.path_in_schema!r} is compressed")
    if metadata.num_rows * 4 > path.stat().st_size:  # the length of every code takes 4 bytes
        raise ValueError(f"{metadata.num_rows:,} codes do not fit into {path.stat().st_size:,} bytes")
    table = pq.read_table(path, memory_map=True)
    if table.num_rows != metadata.num_rows or any(column.null_count for column in table.columns):
        raise ValueError("a code, label and task in every row expected, but some are missing")
    return table
