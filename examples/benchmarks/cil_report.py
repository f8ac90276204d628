"""The report of `cil.py`: a Markdown table and plots from the records of runs."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

SHARES = {
    "pooled accuracy": lambda record: record["pooled_accuracy"][-1],
    "mean class accuracy": lambda record: float(np.mean(list(record.get("class_accuracy", {"": np.nan}).values()))),
    "average incremental accuracy": lambda record: record["average_incremental_accuracy"],
    "forgetting": lambda record: record["forgetting"],
    "backward transfer": lambda record: record["backward_transfer"],
    "learning accuracy": lambda record: record["learning_accuracy"],
}
COSTS = ("memory kB", "images", "s per task", "images per s", "seeds")


def group(records: list[dict]) -> dict[tuple, list[dict]]:
    """Return records by label, budget and scale of the learning rate, the most accurate first."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        run = record["run"]
        groups.setdefault((run["label"], run["budget"], run["lr_scale"]), []).append(record)
    ranked = sorted(groups, key=lambda key: -np.mean([record["pooled_accuracy"][-1] for record in groups[key]]))
    return {key: groups[key] for key in ranked}


def name_of(key: tuple) -> str:
    """Return what a row or a curve is called."""
    label, budget, scale = key
    return label + (f", {budget}" if budget else "") + (f", rates x {scale:g}" if scale != 1 else "")


def table(groups: dict[tuple, list[dict]]) -> str:
    """Return mean and standard deviation over seeds as Markdown, shares in %; `*` marks memory over the budget.

    The share of older records that do not hold it is left empty.
    """
    lines = ["| method | " + " | ".join([*SHARES, *COSTS]) + " |", "|---" * (1 + len(SHARES) + len(COSTS)) + "|"]
    largest = max((run["budget_bytes"] or 0 for runs in groups.values() for run in runs), default=0)
    for key, runs in groups.items():
        cells = [name_of(key)]
        for value_of in SHARES.values():
            values = 100 * np.asarray([value_of(run) for run in runs])
            spread = f" ± {values.std(ddof=1):.1f}" if len(runs) > 1 else ""
            cells.append("" if np.isnan(values).any() else f"{values.mean():.1f}{spread}")
        memory = max(max(run["memory_bytes"]) for run in runs)
        is_over = 0 < (runs[0]["budget_bytes"] or largest) < memory
        cells.append(f"{memory / 1000:,.0f}" + ("*" if is_over else ""))
        cells.append(f"{np.mean([run['images'] for run in runs]):,.0f}")
        cells.append(f"{np.mean([np.mean(run['seconds_per_task']) for run in runs]):.1f}")
        cells.append(f"{np.mean([run['images_per_second'] for run in runs]):,.0f}")
        lines.append("| " + " | ".join([*cells, str(len(runs))]) + " |")
    return "\n".join(lines)


def plot_over_tasks(groups: dict[tuple, list[dict]], value: str, label: str, factor: float) -> Figure:
    """Return a value over tasks, mean and range over seeds; a method with one task becomes a line.

    Args:
        groups (`dict`): What `group` returned.
        value (`str`): Key of a list in the records.
        label (`str`): Of the vertical axis.
        factor (`float`): What values are multiplied with.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (key, runs) in enumerate(groups.items()):
        curves = factor * np.asarray([run[value] for run in runs])  # (seeds, T)
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "label": name_of(key)}
        if curves.shape[1] == 1:
            axes.axhline(curves.mean(), **{**style, "color": "grey", "linestyle": "--"})
            continue
        tasks = np.arange(1, curves.shape[1] + 1)
        axes.plot(tasks, curves.mean(axis=0), marker="o", **style)
        axes.fill_between(tasks, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=style["color"])
    axes.set(xlabel="after task", ylabel=label, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def plot_over_budgets(groups: dict[tuple, list[dict]]) -> Figure:
    """Return the last pooled accuracy over the budget of memory; methods without a budget become lines."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    points: dict[tuple, list[tuple]] = {}
    for (label, _, scale), runs in groups.items():
        accuracies = [100 * run["pooled_accuracy"][-1] for run in runs]
        point = (runs[0]["budget_bytes"], np.mean(accuracies), np.min(accuracies), np.max(accuracies))
        points.setdefault((label, None, scale), []).append(point)
    for number, (key, values) in enumerate(points.items()):
        color = f"C{number % 10}"
        if values[0][0] is None:
            axes.axhline(values[0][1], color=color, linestyle="--", label=name_of(key))
            continue
        budgets, means, lows, highs = np.asarray(sorted(values)).T
        axes.plot(budgets / 1000, means, marker="o", color=color, label=name_of(key))
        axes.fill_between(budgets / 1000, lows, highs, alpha=0.15, color=color)
    axes.set(xlabel="memory budget (kB)", ylabel="accuracy on all classes (%)", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def write_report(records: list[dict], folder: Path) -> str:
    """Write `cil.md`, `accuracy.png`, `seconds.png` and, for several budgets, `budgets.png`; return the table."""
    groups = group(records)
    text = table(groups)
    hardware = sorted({record["hardware"] for record in records})
    note = f"{records[0]['title']}. Memory with * is over the budget. Seconds on {'; '.join(hardware)}."
    (folder / "cil.md").write_text(f"{text}\n\n{note}\n")
    over_tasks = plot_over_tasks(groups, "pooled_accuracy", "accuracy on all classes so far (%)", 100)
    over_tasks.savefig(folder / "accuracy.png", dpi=110)
    plot_over_tasks(groups, "seconds_per_task", "seconds of learning", 1).savefig(folder / "seconds.png", dpi=110)
    if len({record["budget_bytes"] for record in records} - {None}) > 1:
        plot_over_budgets(groups).savefig(folder / "budgets.png", dpi=110)
    return text
