"""Plots: what `history.json` says of accuracy, forgetting and memory, and of how much of the network is frozen."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..storage.atomic import write_whole
from .history import MEMORY_PARTS, History

HISTORY_PLOT_NAME, SYNAPSES_PLOT_NAME = "history.png", "synapses.png"


def plot_history(history: History) -> Figure:
    """Return a figure with the accuracy matrix, the curves over tasks and the memory's parts."""
    figure = Figure(figsize=(13, 3.8))
    margins = {"left": 0.03, "right": 0.99, "bottom": 0.14, "top": 0.91, "wspace": 0.17}  # faster than a layout engine
    matrix_axes, curve_axes, memory_axes = figure.subplots(1, 3, gridspec_kw=margins)
    _plot_matrix(matrix_axes, history)
    _plot_curves(curve_axes, history)
    _plot_memory(memory_axes, history)
    return figure


def save_history_plot(history: History, folder: str | Path) -> None:
    """Write `history.png`, whole or not at all."""
    picture = io.BytesIO()
    plot_history(history).savefig(picture, format="png", dpi=110)
    write_whole(Path(folder) / HISTORY_PLOT_NAME, picture.getvalue())


def plot_synapses(parts: dict[str, float], entries: dict[str, int]) -> Figure:
    """Return a figure with the share of each part of the network that is frozen, and how many weights that is.

    A sleep freezes the same share of every parameter, rounded down, so after the first one the shares are nearly
    equal; later they differ by how much of what mattered was frozen already.

    Args:
        parts (`dict[str, float]`): Share of each part that is frozen.
        entries (`dict[str, int]`): Number of weights of each part.
    """
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(parts)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(parts), [100 * share for share in parts.values()])
    labels = [
        f"{100 * share:.2f} ({round(share * entries[part]):,} of {entries[part]:,})" for part, share in parts.items()
    ]
    axes.bar_label(bars, labels, padding=3)
    axes.invert_yaxis()
    axes.set(title="frozen", xlabel="% of the weights of a part", xlim=(0, 1.6 * max(100 * max(parts.values()), 1)))
    return figure


def save_synapses_plot(history: History, folder: str | Path, entries: dict[str, int]) -> None:
    """Write `synapses.png`, whole or not at all, if the network has masks.

    Args:
        history ([`History`]): Holds the report of the last sleep.
        folder (`str` or `Path`): Where.
        entries (`dict[str, int]`): Number of weights of each part of the network.
    """
    parts = history.records[-1].sleep.get("frozen")
    if parts:
        picture = io.BytesIO()
        plot_synapses(parts, entries).savefig(picture, format="png", dpi=110)
        write_whole(Path(folder) / SYNAPSES_PLOT_NAME, picture.getvalue())


def _plot_matrix(axes, history: History) -> None:
    size = len(history)
    matrix = np.full((size, size), np.nan)
    for row, values in enumerate(history.accuracy_matrix):
        matrix[row, : len(values)] = values
    image = axes.imshow(100 * matrix, vmin=0, vmax=100, cmap="viridis")
    if size <= 12:
        for row, column in zip(*np.nonzero(~np.isnan(matrix)), strict=True):
            colour = "black" if matrix[row, column] > 0.6 else "white"
            axes.text(column, row, f"{100 * matrix[row, column]:.0f}", ha="center", va="center", color=colour)
    _number_tasks(axes, size)
    axes.set(title="accuracy (%)", xlabel="on task", ylabel="after task", yticks=axes.get_xticks())
    axes.set_yticklabels([label.get_text() for label in axes.get_xticklabels()])
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _plot_curves(axes, history: History) -> None:
    tasks = np.arange(len(history))
    summaries = [history.summary(count) for count in range(1, len(history) + 1)]
    for name in ("average_accuracy", "pooled_accuracy", "forgetting"):
        values = [100 * summary[name] for summary in summaries]
        axes.plot(tasks, values, marker="o", markersize=4, label=name.replace("_", " "))
    axes.set(title="over tasks (%)", xlabel="after task")
    axes.grid(alpha=0.3)
    axes.legend()
    _number_tasks(axes, len(history))


def _plot_memory(axes, history: History) -> None:
    tasks = np.arange(len(history))
    bottom = np.zeros(len(history))
    for part in MEMORY_PARTS:
        kilobytes = np.asarray([record.memory_bytes[part] / 1000 for record in history.records])
        axes.bar(tasks, kilobytes, bottom=bottom, label=part)
        bottom += kilobytes
    axes.set(title="memory (kB)", xlabel="after task", ylim=(0, 1.3 * max(bottom.max(), 1e-3)))
    axes.legend(ncols=2)
    _number_tasks(axes, len(history))


def _number_tasks(axes, size: int) -> None:
    ticks = np.arange(0, size, max(1, size // 10))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
