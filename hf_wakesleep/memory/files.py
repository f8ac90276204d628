"""MemoryFiles: saves a memory to a folder (`codes.parquet`, `memory.json`, ...) and loads it with all checks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..codecs.base import Codec
from ..codecs.registry import make_codec
from ..model.configuration_wakesleep import check_class_names
from ..model.digests_wakesleep import MEMORY_FILES, check_digests, file_digest
from ..storage.atomic import read_json
from .synapses import SYNAPSES_NAME, Synapses
from .table import INDEX_BYTES, CodeTable, arrow_schema

CODES_NAME, CODEC_NAME, MEMORY_NAME = "codes.parquet", "codec.safetensors", "memory.json"
CHECKED_FILES = (CODES_NAME, CODEC_NAME, SYNAPSES_NAME)  # their digests stand in memory.json
SETTINGS_KEYS = {"codec", "settings", "budget", "statistics_bytes", "sha256"}  # of memory.json
PLAIN_ENCODINGS = {"PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "RLE"}  # of codes: without compression
MIN_CODE_BYTES = 4  # the least that a code of any codec takes
CLASS_BYTES = 12  # per class: its entry and that of a task in the dictionaries of `codes.parquet`
HEADER_BYTES = 1024  # a Parquet file with rows less one without, and `memory.json`


@dataclass(frozen=True)
class MemoryFiles:
    """What the files of a memory hold.

    Args:
        codec ([`Codec`]): With its weights, if it has some.
        table ([`CodeTable`]): The codes.
        classes (`Sequence[str]`): Names of the classes, in the order of their labels.
        budget (`int`, *optional*): Most bytes that the memory may take.
        statistics_bytes (`int`): Bytes that the model keeps beside its weights.
        synapses ([`Synapses`], *optional*): Which weights are frozen.
    """

    codec: Codec
    table: CodeTable
    classes: Sequence[str]
    budget: int | None
    statistics_bytes: int
    synapses: Synapses | None = None

    def write(self, folder: Path) -> None:
        """Write all files into a folder, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_parquet(self.table.to_arrow(self.classes), folder / CODES_NAME)
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
            "sha256": {
                path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name in CHECKED_FILES
            },
        }
        (folder / MEMORY_NAME).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "MemoryFiles":
        """Read what `write` wrote; digests and contents are checked.

        Raises:
            ValueError: If a file is missing or does not hold what it should.
        """
        folder = folder.absolute()
        missing = [name for name in (CODES_NAME, MEMORY_NAME) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"Expected a memory in {folder}, but {missing} are missing. Is the stage complete?")
        if folder.name == "memory":  # in a stage
            check_digests(folder.parent, MEMORY_FILES)
        try:
            settings = _read_settings(folder)
            weights = load_file(folder / CODEC_NAME) if (folder / CODEC_NAME).is_file() else None
            codec = make_codec(settings["codec"], state_dict=weights, **settings["settings"])
            table, classes = _read_parquet(folder / CODES_NAME)
            synapses = Synapses.load(folder / SYNAPSES_NAME) if (folder / SYNAPSES_NAME).is_file() else None
            files = cls(codec, table, classes, settings["budget"], settings["statistics_bytes"], synapses)
            files._check()
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
        return files

    def _check(self) -> None:
        """Refuse a table that no memory can have written."""
        labels, tasks = self.table.labels, self.table.tasks
        if len(labels) and not (0 <= labels.min() <= labels.max() < len(self.classes) and tasks.min() >= 0):
            raise ValueError(f"labels in 0..{len(self.classes) - 1} and tasks from 0 expected, got others")
        if not self.table.is_ordered():
            raise ValueError("codes by class, in turns of its tasks, expected, got another order")
        size = int(self.table.sizes.sum()) + INDEX_BYTES * len(self.table)
        if self.budget is not None and size > self.budget:
            raise ValueError(f"at most {self.budget:,} bytes of codes expected, got {size:,}")


def file_overhead(classes: Sequence[str]) -> int:
    """Return the bytes of all files of a memory beyond its codes, their index and the codec's weights."""
    sink = pa.BufferOutputStream()
    _write_parquet(arrow_schema(classes).empty_table(), sink)
    return sink.getvalue().size + HEADER_BYTES + CLASS_BYTES * len(classes)


def _write_parquet(table: pa.Table, where) -> None:
    """Write codes uncompressed, with their lengths packed into 1 or 2 bytes each instead of 4."""
    pq.write_table(
        table,
        where,
        compression="none",
        use_dictionary=["label", "task"],
        column_encoding={"code": "DELTA_LENGTH_BYTE_ARRAY"},
        write_statistics=False,
    )


def _read_settings(folder: Path) -> dict:
    """Read memory.json, and compare the files beside it with the digests in it."""
    settings = read_json(folder / MEMORY_NAME)
    if set(settings) != SETTINGS_KEYS:
        raise ValueError(f"{MEMORY_NAME} with the keys {sorted(SETTINGS_KEYS)} expected, got {sorted(settings)[:9]}")
    for name in ("budget", "statistics_bytes"):
        value = settings[name]
        if not (type(value) is int and 0 <= value < 2**63) and not (name == "budget" and value is None):
            raise ValueError(f"a number of bytes expected as {name!r}, got {value!r}")
    digests = {name: file_digest(folder / name) for name in CHECKED_FILES if (folder / name).is_file()}
    if settings["sha256"] != digests:
        raise ValueError(f"{' or '.join(digests)} is not the file that was written with {MEMORY_NAME}")
    return settings


def _read_parquet(path: Path) -> tuple[CodeTable, list[str]]:
    """Read codes and class names; a table that would take more memory than the file is long is refused."""
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            is_packed = chunk.path_in_schema == "code" and not PLAIN_ENCODINGS.issuperset(chunk.encodings)
            if chunk.compression != "UNCOMPRESSED" or is_packed:
                raise ValueError(f"plain columns expected, but {chunk.path_in_schema!r} is compressed")
    if metadata.num_rows * MIN_CODE_BYTES > path.stat().st_size:
        raise ValueError(f"{metadata.num_rows:,} codes do not fit into {path.stat().st_size:,} bytes")
    schema = pq.read_schema(path)
    classes = Features.from_arrow_schema(schema)["label"].names
    if not schema.equals(arrow_schema(classes)):
        raise ValueError(f"columns {arrow_schema(classes).names} of the types of a memory expected, got {schema}")
    check_class_names(classes)
    if len(set(classes)) < len(classes):
        raise ValueError("a class comes twice")
    table = pq.read_table(path, memory_map=True)
    if table.num_rows != metadata.num_rows or any(column.null_count for column in table.columns):
        raise ValueError("a code, label and task in every row expected, but some are missing")
    return CodeTable.from_arrow(table), list(classes)
