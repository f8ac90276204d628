"""ImageStore: raw images under a budget in bytes, balanced over classes."""

import torch

LABEL_BYTES = 2


def pixel_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return the bytes of uint8 images (N, 3, H, W), int64 of shape (N,): one channel where the three are equal."""
    is_grey = ((images[:, :1] == images).flatten(1)).all(dim=1)  # (N,)
    return images[0, 0].numel() * torch.where(is_grey, 1, 3)


def keep(labels: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor, budget: int) -> torch.Tensor:
    """Return which items to keep so that their sizes add up to at most `budget`, positions of shape (K,).

    Every class keeps the items with its k smallest keys, with the largest k that fits; what is left goes to one more
    item of some classes, smallest keys first. If the keys are uniform random numbers drawn once per image, a class
    keeps a uniform sample of all its images, whatever the order they came in: a reservoir.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): Classes.
        keys (`torch.Tensor` of shape `(N,)`): What to keep first, smallest first.
        sizes (`torch.Tensor` of shape `(N,)`): Bytes, int64.
        budget (`int`): Bytes to fill.
    """
    order = keys.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, then by key
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - starts[labels[order]]  # (N,) within its class
    by_rank = torch.zeros(int(counts.max()) if len(order) else 0, dtype=torch.int64)
    by_rank.index_add_(0, rank, sizes[order])
    per_class = int((by_rank.cumsum(0) <= budget).sum())
    kept = order[rank < per_class]
    left, more = budget - int(sizes[kept].sum()), []
    candidates = order[rank == per_class]
    for position in candidates[keys[candidates].argsort(stable=True)].tolist():
        if sizes[position] <= left:
            more.append(position)
            left -= int(sizes[position])
    return torch.cat([kept, torch.tensor(more, dtype=torch.int64)])


class ImageStore:
    """Raw images of past tasks with their labels and, if wanted, a row of numbers for each.

    Args:
        budget (`int`, *optional*): Bytes that `num_bytes` may not exceed; no limit if missing.
    """

    def __init__(self, budget: int | None = None):
        self.budget = budget
        self.images = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        self.labels = torch.empty(0, dtype=torch.int64)
        self.keys = torch.empty(0)
        self.rows = torch.empty(0, 0)  # logits, NaN for classes that came later
        self._sizes = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels, labels and rows."""
        return int(self._sizes.sum())

    def add(
        self, images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor | None = None
    ) -> None:
        """Add images, then drop those with the largest keys until the budget holds.

        Args:
            images (`torch.Tensor` of shape `(N, 3, H, W)`): uint8.
            labels (`torch.Tensor` of shape `(N,)`): int64.
            keys (`torch.Tensor` of shape `(N,)`): What to keep first, smallest first.
            rows (`torch.Tensor` of shape `(N, C)`, *optional*): Four bytes are counted for each number.
        """
        rows = torch.empty(len(images), 0) if rows is None else rows
        missing = rows.shape[1] - self.rows.shape[1]
        old = torch.nn.functional.pad(self.rows, (0, missing), value=torch.nan)  # (M, C)
        sizes = pixel_bytes(images) + LABEL_BYTES + 4 * rows.shape[1]
        merged = [
            torch.cat([mine, new]) if len(mine) else new
            for mine, new in (
                (self.images, images),
                (self.labels, labels),
                (self.keys, keys),
                (old, rows),
                (self._sizes, sizes),
            )
        ]
        if self.budget is not None:
            kept = keep(merged[1], merged[2], merged[4], self.budget)
            merged = [tensor[kept] for tensor in merged]
        self.images, self.labels, self.keys, self.rows, self._sizes = merged

    def draw(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Return uniform random positions (size,), with replacement."""
        return torch.randint(len(self), (size,), generator=generator)
