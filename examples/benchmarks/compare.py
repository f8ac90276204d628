"""Run methods of `train_cil.py` over several seeds; write their mean and spread as a table and a plot.

    OMP_NUM_THREADS=1 python examples/benchmarks/compare.py --methods wakesleep replay joint finetune --seeds 42 43 44

compares them on scikit-learn's digits. Whatever stands after `--` goes to `train_cil.py`.
Finished runs in `--output_dir` are not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

TRAIN = Path(__file__).parents[1] / "train_cil.py"
METRICS = ("pooled_accuracy", "average_incremental_accuracy", "forgetting", "learning_accuracy")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments of this script and those of `train_cil.py`."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["wakesleep", "replay", "joint", "finetune"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--output_dir", type=Path, default=Path("out/compare"))
    return parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]


def run(method: str, seed: int, output_dir: Path, train_args: list[str]) -> dict:
    """Run a method with a seed, unless it has been run, and return its history."""
    folder = output_dir / f"{method}-{seed}"
    done = folder / "done.json"
    if not done.exists():
        command = [sys.executable, str(TRAIN), "--method", method, "--seed", str(seed), "--output_dir", str(folder)]
        subprocess.run([*command, "--resume_from_checkpoint", "true", *train_args], check=True)
        done.write_text(json.dumps(command + train_args))
    return json.loads((folder / "history.json").read_text())


def table(histories: dict[str, list[dict]]) -> str:
    """Return mean and standard deviation over seeds of every metric and method, as Markdown."""
    lines = ["| method | " + " | ".join(name.replace("_", " ") for name in METRICS) + " | memory kB | images seen |"]
    lines.append("|---" * (len(METRICS) + 3) + "|")
    for method, runs in histories.items():
        cells = []
        for name in METRICS:
            values = 100 * np.asarray([run[name][-1] for run in runs])
            cells.append(f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else 0:.1f}")
        memory = np.mean([run["memory_bytes"][-1]["total"] for run in runs]) / 1000
        images = np.mean([sum(run["wake_images"]) + sum(run["sleep_images"]) for run in runs])
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {memory:.0f} | {images:,.0f} |")
    return "\n".join(lines)


def plot(histories: dict[str, list[dict]]) -> Figure:
    """Return pooled accuracy over tasks, mean and range over seeds; joint training as a line."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, runs in histories.items():
        curves = 100 * np.asarray([run["pooled_accuracy"] for run in runs])  # (seeds, T)
        tasks = np.arange(1, curves.shape[1] + 1)
        if len(tasks) == 1:
            axes.axhline(curves.mean(), linestyle="--", color="grey", label=method)
            continue
        (line,) = axes.plot(tasks, curves.mean(axis=0), marker="o", label=method)
        axes.fill_between(tasks, curves.min(axis=0), curves.max(axis=0), alpha=0.2, color=line.get_color())
    axes.set(xlabel="after task", ylabel="accuracy on all classes so far (%)", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main() -> None:
    """Run everything, and write `compare.md` and `compare.png`."""
    args, train_args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    histories = {
        method: [run(method, seed, args.output_dir, train_args) for seed in args.seeds] for method in args.methods
    }
    text = table(histories)
    (args.output_dir / "compare.md").write_text(text + "\n")
    plot(histories).savefig(args.output_dir / "compare.png", dpi=110)
    print(f"\n{text}\n\n{args.output_dir.resolve()}: compare.md, compare.png and the runs")


if __name__ == "__main__":
    main()
