"""Plots: `history.png` with accuracy, confusion matrix and memory, and `synapses.png` with the frozen weights."""

import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..storage.atomic import write_atomically
from .history import History
from .panels import TEXT, draw_confusion, draw_curves, draw_memory, draw_tasks, percent_label, size_label

HISTORY_PLOT_NAME, SYNAPSES_PLOT_NAME = "history.png", "synapses.png"

# Sizes of the picture and boxes of the panels (left, bottom, width, height), in inches: a layout engine would draw
# everything twice.
PANELS = (draw_curves, draw_tasks, draw_memory, draw_confusion)
WITHOUT_CONFUSION = (
    (14.0, 3.9),
    ((0.5, 0.5, 3.4, 2.4), (5.7, 0.5, 3.6, 2.4), (10.3, 0.5, 3.5, 2.4)),
)
FEW_CLASSES, MOST_OF_FEW = (
    (
        (13.0, 8.0),
        ((1.75, 5.6, 3.9, 1.3), (1.75, 2.4, 3.9, 2.35), (1.75, 0.5, 3.9, 0.95), (6.85, 1.1, 5.95, 5.95)),
    ),
    30,
)
MANY_CLASSES = (
    (16.0, 10.6),
    ((1.75, 7.6, 4.0, 1.9), (1.75, 3.3, 4.0, 3.4), (1.75, 0.5, 4.0, 1.7), (7.35, 1.1, 8.45, 8.45)),
)


def plot_history(history: History) -> Figure:
    """Return a figure with curves over tasks, accuracy by task, memory, and the confusion matrix if it is known."""
    (width, height), boxes = _layout(history)
    figure = Figure(figsize=(width, height), dpi=100)
    for draw, (left, bottom, across, up) in zip(PANELS, boxes, strict=False):
        axes = figure.add_axes((left / width, bottom / height, across / width, up / height))
        axes.set_axis_off()
        draw(axes, history)
    figure.text(0.15 / width, 1 - 0.15 / height, _headline(history), fontsize=TEXT + 3, fontweight="bold", va="top")
    return figure


def save_history_plot(history: History, folder: str | Path) -> None:
    """Write `history.png`, complete or not at all."""
    _save(plot_history(history), Path(folder) / HISTORY_PLOT_NAME)


def plot_synapses(parts: dict[str, float], entries: dict[str, int]) -> Figure:
    """Return a figure with the share of each part of the network that is frozen, and how many weights that is.

    A sleep freezes the same share of every parameter, rounded down, so after the first one the shares are nearly
    equal; later they differ by how much of what mattered was frozen already.

    Args:
        parts (`dict[str, float]`): Share of each part that is frozen.
        entries (`dict[str, int]`): Number of weights of each part.
    """
    height, left = 1.2 + 0.25 * len(parts), 0.3 + 0.09 * max(map(len, parts))  # in inches
    figure = Figure(figsize=(left + 6, height), dpi=100)
    axes = figure.add_axes((left / (left + 6), 0.6 / height, 5.8 / (left + 6), 1 - 1.0 / height))
    bars = axes.barh(list(parts), [100 * share for share in parts.values()], color="#0072B2")
    labels = [
        f"{100 * share:.2f} ({round(share * entries[part]):,} of {entries[part]:,})" for part, share in parts.items()
    ]
    axes.bar_label(bars, labels, padding=3)
    axes.invert_yaxis()
    axes.set(
        title="Frozen weights", xlabel="% of the weights of a part", xlim=(0, 1.6 * max(100 * max(parts.values()), 1))
    )
    return figure


def save_synapses_plot(history: History, folder: str | Path, entries: dict[str, int]) -> None:
    """Write `synapses.png`, complete or not at all, if the last sleep reports frozen weights.

    Args:
        history ([`History`]): Holds the report of the last sleep.
        folder (`str` or `Path`): Where.
        entries (`dict[str, int]`): Number of weights of each part of the network.
    """
    parts = history.records[-1].sleep.get("frozen")
    if parts:
        _save(plot_synapses(parts, entries), Path(folder) / SYNAPSES_PLOT_NAME)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    with rc_context({"text.hinting": "none"}):  # as legible at this size, and quicker
        canvas.draw()
    # Not by `savefig`: without opacity and with less effort to compress it takes a third of the time.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(picture, "PNG", compress_level=3)
    write_atomically(path, picture.getvalue())


def _layout(history: History) -> tuple:
    if not history.confusion:
        return WITHOUT_CONFUSION
    return FEW_CLASSES if len(history.classes) <= MOST_OF_FEW else MANY_CLASSES


def _headline(history: History) -> str:
    """Return the numbers that a reader wants first."""
    summary, last = history.summary(), history.records[-1]
    tasks, classes = len(history), len(history.classes)
    parts = [
        f"{tasks} task{'s' if tasks > 1 else ''}, {classes:,} class{'es' if classes > 1 else ''}",
        f"accuracy {percent_label(summary['pooled_accuracy'])}",
        f"forgetting {percent_label(summary['forgetting'])}",
        f"memory {size_label(last.memory_bytes['total'])} with {last.num_codes:,} codes",
    ]
    return "   ·   ".join(parts)
