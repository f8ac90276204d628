"""Panels of `history.png`: curves, accuracy per task, memory and confusion matrix, each drawn on given axes."""

import math
from collections.abc import Sequence
from functools import cache

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.font_manager import FontProperties, findfont, get_font

from .history import History
from .task_record import MEMORY_PARTS

# Colours that the colour-blind tell apart (Okabe & Ito 2008). A wide pale line under a thin dark one under a dashed
# one: where curves coincide all are seen.
CURVES = {
    "average_accuracy": {"color": "#8ccdf0", "linewidth": 7, "markersize": 11},
    "pooled_accuracy": {"color": "#00507e", "linewidth": 2.2, "markersize": 6},
    "forgetting": {"color": "#D55E00", "linewidth": 2.2, "markersize": 3, "linestyle": (0, (3, 2)), "marker": "s"},
}
COLOURS = dict(zip(MEMORY_PARTS, ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#777777"), strict=True))
UNKNOWN, LINES = "#e4e4e4", "#b0b0b0"
# Of -1 (always wrong) to 1 (always right); few wrong answers shall be seen, so orange grows with their square root.
RIGHT_OR_WRONG = ListedColormap(
    np.concatenate(
        [
            matplotlib.colormaps["Oranges"](0.05 + 0.8 * np.sqrt(np.linspace(1, 0.004, 255))),
            [(1, 1, 1, 1)] * 2,
            matplotlib.colormaps["Blues"](np.linspace(0.1, 1, 255)),
        ]
    )
).with_extremes(bad=UNKNOWN)
MOST_CELLS, MOST_NAMES, MOST_NUMBERS = 200, 100, 20  # of a confusion matrix: a side of cells, with names, with numbers
MOST_TASKS, MOST_TASK_NUMBERS = 25, 12  # of tasks: labelled, with numbers in cells
TEXT, SMALL = 9, 7.5  # sizes of fonts, in points
BYTE_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
WIDEST = 98  # characters of a small line above a confusion matrix


def draw_curves(axes: Axes, history: History) -> None:
    """Draw average and pooled accuracy and forgetting after each task, with their last values."""
    tasks = np.arange(1, len(history) + 1)
    summaries = [history.summary(count) for count in tasks]
    lowest = 0.0
    for name, style in CURVES.items():
        values = np.asarray([100 * summary[name] for summary in summaries])  # (T,)
        marker = style.get("marker", "o") if len(history) <= MOST_TASKS else None
        axes.plot(tasks, values, **{**style, "marker": marker}, solid_capstyle="butt")
        lowest = min(lowest, np.nanmin(values, initial=0.0))
    axes.set(xlim=(0.5, len(history) + 0.5), ylim=(lowest - 5, 105))
    axes.hlines([0, 25, 50, 75, 100], 0.5, len(history) + 0.5, colors=UNKNOWN, linewidth=0.8, zorder=0)
    for value in (0, 25, 50, 75, 100):
        _beside(axes, value, str(value))
    _title(axes, "Accuracy on all tasks so far, and forgetting (%)", rows=1)
    labels = [f"{name.split('_')[0]} {percent_label(summaries[-1][name])}" for name in CURVES]
    _legend(axes, labels, [style["color"] for style in CURVES.values()])
    _number_tasks(axes, len(history))


def draw_tasks(axes: Axes, history: History) -> None:
    """Draw the accuracy on the classes of each task (row) after each task (column)."""
    size = len(history)
    matrix = np.full((size, size), np.nan)
    for after, values in enumerate(history.accuracy_matrix):
        matrix[: after + 1, after] = 100 * np.asarray(values)
    options = {"aspect": "auto", "interpolation": "nearest", "extent": (0.5, size + 0.5, size + 0.5, 0.5)}
    axes.imshow(matrix, vmin=0, vmax=100, cmap="cividis", **options)
    is_unknown = np.isnan(matrix) & ~np.tri(size, k=-1, dtype=bool)
    if is_unknown.any():
        axes.imshow(np.where(is_unknown, 1, np.nan), cmap=ListedColormap([UNKNOWN]), **options)
    if size <= MOST_TASK_NUMBERS:
        for row, column in zip(*np.nonzero(np.triu(np.ones((size, size)))), strict=True):
            value = matrix[row, column]
            colour = "white" if value < 50 else "black"
            text = "–" if np.isnan(value) else f"{value:.0f}"
            axes.text(column + 1, row + 1, text, ha="center", va="center", color=colour, fontsize=SMALL)
    _name_tasks(axes, history)
    hint = "yellow is best" if size <= MOST_TASK_NUMBERS else "numbers: now"
    _title(axes, f"Accuracy on each task's classes (%), {hint}")
    _number_tasks(axes, size)


def _name_tasks(axes: Axes, history: History) -> None:
    """Name the rows of the tasks, with their last accuracy where their cells have no numbers."""
    records, size = history.records, len(history)
    firsts = np.cumsum([0, *(len(record.new_classes) for record in records)])
    for number in range(0, size, -(-size // MOST_TASKS)):
        record, value = records[number], records[-1].accuracy[number]
        label = task_label(number, record.name, record.new_classes, int(firsts[number]))
        if size > MOST_TASK_NUMBERS:
            label += "   –" if np.isnan(value) else f"   {100 * value:.0f}"
        _beside(axes, number + 1, label, SMALL if size <= MOST_TASK_NUMBERS else 6)


def draw_memory(axes: Axes, history: History) -> None:
    """Draw the bytes of each kind after each task, and the budget if it is not far above them."""
    records = history.records
    edges = np.arange(len(records) + 1) + 0.5
    bottom = np.zeros(len(records))
    last, budget = records[-1].memory_bytes, (history.protocol.get("memory") or {}).get("budget")
    shown = [part for part in MEMORY_PARTS if any(record.memory_bytes[part] for record in records)]
    for part in shown:
        sizes = np.asarray([record.memory_bytes[part] for record in records], dtype=float)  # (T,)
        axes.stairs(bottom + sizes, edges, baseline=bottom, fill=True, color=COLOURS[part])
        bottom = bottom + sizes  # a new array: the panel keeps the old one
    axes.vlines(edges[1:-1], 0, bottom[1:], colors="white", linewidth=0.6)
    top = max(bottom.max(), 1.0)
    title = f"Memory: {size_label(last['total'])}"
    if budget is not None:
        title += f" of {size_label(budget)} ({last['total'] / max(budget, 1):.0%})"
        if budget <= 3 * top:
            top = max(top, budget)
            axes.axhline(budget, color="black", linestyle="--", linewidth=1.2)
            axes.text(0.6, budget, "budget", va="bottom", fontsize=SMALL)
    for value in (0, top / 2, top):
        _beside(axes, value, size_label(round(value)))
    axes.axhline(0, color=LINES, linewidth=0.8)
    axes.set(xlim=(0.5, len(records) + 0.5), ylim=(0, 1.25 * top))
    _title(axes, title, rows=-(-len(shown) // 3))
    _legend(axes, [f"{part} {size_label(last[part])}" for part in shown], [COLOURS[part] for part in shown])
    _number_tasks(axes, len(records))


def draw_confusion(axes: Axes, history: History) -> None:
    """Draw which class (column) the images of each class (row) are taken for, as shares of the row's images.

    Neighbouring classes share a cell where there are more than `MOST_CELLS`.
    """
    size = len(history.classes)
    block = -(-size // MOST_CELLS)
    cells = -(-size // block)
    counts = np.zeros((cells, cells))
    entries = np.asarray(history.confusion)  # (N, 3)
    np.add.at(counts, (entries[:, 0] // block, entries[:, 1] // block), entries[:, 2])
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)  # (cells, cells), NaN where no image is
    signs = 2 * np.eye(cells) - 1
    options = {"aspect": "auto", "interpolation": "nearest", "extent": (-0.5, size - 0.5, size - 0.5, -0.5)}
    axes.imshow(signs * shares, cmap=RIGHT_OR_WRONG, vmin=-1, vmax=1, **options)
    if size <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            value = 100 * shares[row, column]
            colour = "white" if value > 55 else "black"
            text = f"{value:.0f}" if value >= 0.5 else "<1"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL)
    _name_classes(axes, history)
    total = int(entries[:, 2].sum())
    _title(axes, f"True class (row) and answer (column), % of the row; {total:,} images", rows=2)
    legend = "blue is right, orange wrong" + (", grey unknown" if np.isnan(shares).any() else "")
    subtitle = legend + _most_confused(history, entries, WIDEST - len(legend))
    axes.annotate(subtitle, (0, 1), (0, 17), "axes fraction", "offset points", fontsize=SMALL, va="bottom")


def _most_confused(history: History, entries: np.ndarray, length: int) -> str:
    """Return up to three pairs of classes that are most often confused, as many as fit into some characters."""
    wrong = sorted(entries[entries[:, 0] != entries[:, 1]].tolist(), key=lambda entry: (-entry[2], entry))[:3]
    names = history.classes
    pairs = [f"{class_label(names[a], a)} → {class_label(names[b], b)} ({count})" for a, b, count in wrong]
    texts = [f"; most often: {', '.join(pairs[:count])}" for count in range(len(pairs), 0, -1)]
    return next((text for text in texts if len(text) <= length), "")


def _name_classes(axes: Axes, history: History) -> None:
    """Part the tasks by lines, number them at the top, and name classes, or tasks where classes are too many."""
    names, size = history.classes, len(history.classes)
    stops = np.cumsum([len(record.new_classes) for record in history.records])
    groups = [
        (int(stop) - len(record.new_classes), int(stop)) for stop, record in zip(stops, history.records, strict=True)
    ]
    inner = [first - 0.5 for first, stop in groups if 0 < first < stop]
    width = 0.7 if len(inner) <= MOST_TASKS else 0.35
    for draw in (axes.hlines, axes.vlines):
        draw([-0.5, *inner, size - 0.5], -0.5, size - 0.5, colors=LINES, linewidth=width)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    shown = [number for number, (first, stop) in enumerate(groups) if first < stop]
    for number in shown[:: -(-len(shown) // MOST_TASKS)] if len(shown) > 1 else ():
        middle = (sum(groups[number]) - 1) / 2
        text = f"task {number + 1}" if len(shown) <= 8 else str(number + 1)
        axes.annotate(
            text, (middle, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", fontsize=SMALL
        )
        if size > MOST_NAMES:
            record = history.records[number]
            label = task_label(number, record.name, record.new_classes, groups[number][0], 20)
            _beside(axes, middle, label, SMALL)
    if size <= MOST_NAMES:
        side = 72 * axes.figure.get_figheight() * axes.get_position().height / size  # of a cell, in points
        for number, name in enumerate(names):
            label = class_label(name, number)
            _beside(axes, number, label, min(TEXT, 0.9 * side))
            _below(axes, number, label, fontsize=min(TEXT, 0.9 * side), rotation=90)


def _beside(axes: Axes, row: float, text: str, fontsize: float = SMALL) -> None:
    """Write to the left of a row; ticks would cost more."""
    place = axes.get_yaxis_text1_transform(4)[0]
    axes.text(0, row, text, transform=place, ha="right", va="center_baseline", fontsize=fontsize)


def _below(axes: Axes, column: float, text: str, pad: float = 4, **style) -> None:
    """Write so many points below a column."""
    place = axes.get_xaxis_text1_transform(pad)[0]
    axes.text(column, 0, text, transform=place, ha="center", va="top", **{"fontsize": SMALL, **style})


def _title(axes: Axes, text: str, rows: int = 0) -> None:
    """Write what a panel shows above it and above so many rows of a legend."""
    axes.set_title(text, loc="left", fontsize=TEXT, fontweight="bold", pad=5 + 14 * rows)


def _legend(axes: Axes, labels: Sequence[str], colours: Sequence[str]) -> None:
    """Write labels above a panel, three in a row, each behind a square in its colour; cheaper than a real legend."""
    last = -(-len(labels) // 3) - 1
    for number, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        at, above = (number % 3 / 3, 1), 5 + 12 * (last - number // 3)
        options = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "baseline"}
        axes.annotate("■", at, (0, above), color=colour, fontsize=TEXT, fontweight="bold", **options)
        axes.annotate(label, at, (13, above), fontsize=SMALL, **options)


def _number_tasks(axes: Axes, size: int) -> None:
    for number in range(size, 0, -max(1, -(-size // 10))):
        _below(axes, number, str(number))
    _below(axes, (size + 1) / 2, "after task", 16)


def class_label(name: str, number: int, length: int = 14) -> str:
    """Return the name of a class, shortened to some characters; `#3` for a name that the font cannot write.

    Args:
        name (`str`): The name.
        number (`int`): Which class it is, from 0; shown from 1.
        length (`int`, defaults to 14): Most characters; wide ones, such as capitals, count one and a half.
    """
    text = " ".join(name.split())
    if not text or not all(ord(character) in _font_characters() for character in text):
        return f"#{number + 1}"
    text = text if _label_width(text) <= length else _shorten_to(text, length - 1).rstrip() + "…"
    return text.replace("$", r"\$")  # else two of them enclose a formula


def task_label(number: int, name: str, new_classes: list[str], first: int, length: int = 24) -> str:
    """Return the number of a task with its name or, if the name is only a number, as many of its classes as fit.

    Args:
        number (`int`): Which task it is, from 0; shown from 1.
        name (`str`): Its name.
        new_classes (`list[str]`): The classes that it brought.
        first (`int`): Number of its first class.
        length (`int`, defaults to 24): About how many characters.
    """
    if name != f"task-{number + 1:02d}":
        return f"{number + 1}: {class_label(name, number, length)}"
    text = str(number + 1)
    for position, label in enumerate(new_classes):
        part = (", " if position else ": ") + class_label(label, first + position)
        rest = len(new_classes) - position - 1
        if position and len(text) + len(part) + (5 if rest else 0) > length:
            return f"{text}, +{rest + 1}"
        text += part
    return text


def percent_label(share: float) -> str:
    """Return a share as percent with one decimal, `unknown` if it is NaN."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def size_label(num_bytes: int) -> str:
    """Return a number of bytes in the largest unit of which it has one, with 3 digits."""
    for unit, name in BYTE_UNITS:
        if num_bytes >= 0.9995 * unit:  # rounded, it is one
            return f"{num_bytes / unit:#.3g}".rstrip(".") + f" {name}"
    return f"{num_bytes} B"


def _label_width(text: str) -> float:
    return sum(1.5 if character.isupper() or character in "mw@%" else 1 for character in text)


def _shorten_to(text: str, length: int) -> str:
    return next(text[:stop] for stop in range(len(text), -1, -1) if _label_width(text[:stop]) <= length)


@cache
def _font_characters() -> frozenset[int]:
    """Return the characters that the font in use can draw."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
