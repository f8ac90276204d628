"""SemiParametricMemory: a table of codes under a budget in bytes, with the codec that turns them back into images."""

import zlib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import snapshot_download

from ..codecs.base import Codec, CodecError
from ..model.digests_wakesleep import DIGESTS_NAME
from .budget import MemoryBytes, fit_to_budget
from .cache import DecodedImageCache
from .files import MemoryFiles, file_overhead
from .sampling import BalancedSampler
from .synapses import Synapses
from .table import INDEX_BYTES, CodeTable


class SemiParametricMemory:
    """Codes of images, balanced over classes and never above the budget.

    Codes are sorted by class. Within a class its tasks alternate, each with its codes by rank. When the budget is full
    every class keeps the first of its codes in that order. Without ranks, codes of a task are sorted by a digest of
    their bytes, so the first are a uniform sample whatever the order they came in (reservoir sampling without a random
    state).

    Args:
        codec ([`Codec`]): Turns images into codes and back.
        budget (`int`, *optional*): Bytes that `num_bytes.total` may not exceed. `None` for no limit.
        classes (`Sequence[str]`, *optional*): Names of the classes, in the order of `model.config.classes`.

    Attributes:
        synapses ([`Synapses`], *optional*): Which weights of the network are frozen; `None` where none ever are.
    """

    def __init__(self, codec: Codec, budget: int | None = None, classes: Sequence[str] = ()):
        self.codec = codec
        self.budget = budget
        self.classes = list(classes)
        self.statistics_bytes = 0
        self._table = CodeTable.from_codes()
        self._cache = DecodedImageCache(codec)
        self.synapses: Synapses | None = None

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"SemiParametricMemory({len(self):,} codes of {len(self.classes)} classes by {self.codec.name!r})"

    @property
    def num_bytes(self) -> MemoryBytes:
        """What the memory takes now."""
        return MemoryBytes(
            codes=int(self._table.sizes.sum()),
            index=INDEX_BYTES * len(self) + file_overhead(self.classes),
            codec=self.codec.num_bytes,
            statistics=self.statistics_bytes,
            masks=self._masks_bytes,
        )

    @property
    def protocol(self) -> dict:
        """What two runs must share so that one can continue with the memory of the other, JSON-able."""
        codec = {"codec": self.codec.name, **self.codec.settings(), "fitted": self.codec.digest()}
        return {**codec, "budget": self.budget}

    @property
    def labels(self) -> np.ndarray:
        """Label of every code, int64 of shape (M,)."""
        return self._table.labels

    @property
    def tasks(self) -> np.ndarray:
        """Number of the task of every code, int32 of shape (M,)."""
        return self._table.tasks

    def set_classes(self, classes: Sequence[str], statistics_bytes: int) -> None:
        """Take over the classes of a model, whose configuration decides their order; codes of new ones may follow.

        Args:
            classes (`Sequence[str]`): `model.config.classes`: those that the memory knows, then new ones.
            statistics_bytes (`int`): Bytes that the model now keeps beside its weights; they count in the budget.

        Raises:
            ValueError: If a known class is missing or at another position, or the budget cannot hold a code of every
                class any more; nothing is changed then.
        """
        if list(classes[: len(self.classes)]) != self.classes:
            moved = next((a, b) for a, b in zip_longest(self.classes, classes) if a != b)
            raise ValueError(
                f"Expected the classes that the memory knows in their order, then new ones, but got {moved[1]!r} "
                f"instead of {moved[0]!r}. Pass `model.config.classes` of the model that the memory belongs to."
            )
        self._change(classes=list(classes), statistics_bytes=statistics_bytes)

    def forget(self, name: str, statistics_bytes: int) -> None:
        """Remove a class and its codes; those after it move up by one.

        Args:
            name (`str`): The class.
            statistics_bytes (`int`): Bytes that the model keeps beside its weights from now on.

        Raises:
            ValueError: If it is unknown, or weights of its output unit are frozen.
        """
        if name not in self.classes:
            raise ValueError(f"Expected a class that is in memory, got {name!r}. Pass one of {self.classes[:10]}.")
        if self.synapses is not None:
            raise ValueError(
                f"{name!r} cannot be forgotten: weights are frozen, and masks of output units cannot be taken apart. "
                "Go on from a stage that was learned with `freeze_fraction=0`."
            )
        index = self.classes.index(name)
        rest = self._table.take(np.flatnonzero(self.labels != index))
        self._table = CodeTable(rest.codes, rest.labels - (rest.labels > index), rest.tasks)
        self._cache = DecodedImageCache(self.codec)  # the old one may hold its images
        self.classes = [known for known in self.classes if known != name]
        self.statistics_bytes = statistics_bytes

    def rename(self, old: str, new: str) -> None:
        """Give a class another name, and drop codes if the budget is exceeded by it.

        Raises:
            ValueError: If the budget cannot hold a code of every class any more; nothing is changed then.
        """
        self._change(classes=[new if known == old else known for known in self.classes])

    def set_budget(self, budget: int | None) -> None:
        """Set another budget, and drop codes that exceed it.

        Raises:
            ValueError: If it cannot hold a code of every class; nothing is changed then.
        """
        self._change(budget=budget)

    def set_synapses(self, synapses: Synapses | None) -> None:
        """Set which weights are frozen, and drop codes if the budget would be exceeded.

        Raises:
            ValueError: If the budget cannot hold a code of every class any more; nothing is changed then.
        """
        self._change(synapses=synapses)

    def become(self, other: "SemiParametricMemory") -> None:
        """Take over all that another memory holds; it may not be used any more."""
        vars(self).update(vars(other))

    def write(
        self, codes: Sequence[bytes], labels: Sequence[int], task: int, ranks: Sequence[int] | None = None
    ) -> None:
        """Add codes of one task, and shrink all classes alike if the budget would be exceeded.

        Args:
            codes (`Sequence[bytes]`): What `codec.encode` returned.
            labels (`Sequence[int]`): Their classes, as positions in `classes`.
            task (`int`): Number of the task, from 0.
            ranks (`Sequence[int]`, *optional*): Order in which codes of a class are kept, 0 first, such as
                [`herding_ranks`] returns. A digest of their bytes if missing.

        Raises:
            ValueError: If a label is unknown, a rank is missing, or the budget cannot hold one code of every class;
                the memory stays as it was.
        """
        labels = np.asarray(labels, dtype=np.int64)
        if len(codes) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes)):
            raise ValueError(
                f"Expected one label in 0..{len(self.classes) - 1} per code, got {len(codes)} codes and labels "
                f"{sorted(set(labels.tolist()))}. Add the classes first."
            )
        new = CodeTable.from_codes(codes, labels, task)
        ranks = new.digests() if ranks is None else np.asarray(ranks)
        if len(ranks) != len(codes):
            raise ValueError(f"Expected one rank per code, got {len(codes)} codes and {len(ranks)} ranks.")
        new = new.take(np.lexsort((ranks, labels)))
        table = self._table.concat(new)
        self._set(table, table.interleave(np.concatenate([self._table.ranks_in_task(), new.ranks_in_task()])))

    def codes(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the codes at some positions in 0..M-1."""
        return self._table.codes.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist()

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
        images = self._cache.decode(self.codes(indices))
        sizes = sorted({tuple(image.shape) for image in images})
        if len(sizes) > 1:
            raise CodecError(f"Expected codes of images of one size, got {sizes[:5]}.")
        return torch.stack(images), torch.from_numpy(self.labels[indices])  # (B, 3, H, W), (B,)

    def balanced_sampler(self, among: np.ndarray | None = None) -> BalancedSampler:
        """Return a [`BalancedSampler`] of memories as they are now.

        Args:
            among (`numpy.ndarray`, *optional*): Sorted positions to draw from; all if missing.
        """
        return BalancedSampler(self.labels, among)

    def checksum(self) -> int:
        """Return a checksum of codes, labels, tasks, class names and synapses."""
        total = zlib.crc32("\n".join(self.classes).encode())
        for column in (self.labels, self.tasks, self._table.sizes):
            total = zlib.crc32(np.ascontiguousarray(column), total)
        for code in self._table.codes:
            total = zlib.crc32(code.as_buffer(), total)
        return total if self.synapses is None else self.synapses.checksum(total)

    def save(self, folder: str | Path) -> None:
        """Write `codes.parquet`, `memory.json` and, where there are any, codec weights and synapses."""
        files = MemoryFiles(self.codec, self._table, self.classes, self.budget, self.statistics_bytes, self.synapses)
        files.write(Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "SemiParametricMemory":
        """Read what `save` wrote.

        Raises:
            ValueError: If a file is missing or does not hold a memory.
        """
        files = MemoryFiles.read(Path(folder))
        memory = cls(files.codec, files.budget, files.classes)
        memory.statistics_bytes, memory._table = files.statistics_bytes, files.table
        memory.synapses = files.synapses
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

    def _change(self, **attributes) -> None:
        """Set attributes, and drop codes that the budget then does not hold; restore all if it is too small."""
        before = {name: vars(self)[name] for name in attributes}
        vars(self).update(attributes)
        try:
            self._set(self._table, np.arange(len(self)))
        except ValueError:
            vars(self).update(before)
            raise

    def _set(self, table: CodeTable, order: np.ndarray) -> None:
        """Take the rows of a table in some order as the content of the memory, as far as the budget allows."""
        if self.budget is not None:
            fixed = file_overhead(self.classes) + self.codec.num_bytes + self.statistics_bytes + self._masks_bytes
            free_bytes = self.budget - fixed
            order = order[
                fit_to_budget(table.labels[order], table.sizes[order] + INDEX_BYTES, free_bytes, self.budget)
            ]
        self._table = table.take(order)
