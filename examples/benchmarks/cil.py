r"""Continual learning: `wakesleep` against published methods on one stream, with equal bytes and images.

    python examples/benchmarks/cil.py --benchmark D
    python examples/benchmarks/cil.py --benchmark P --methods wakesleep replay slda joint --seeds 1993 1994 1995 \
        --budgets 2MB --data_dir DATA --backbone PATH_OR_HUB_NAME --bf16 --output_dir out/cil-P

Benchmark D tests the harness on scikit-learn's digits, which needs no data; P starts from a pretrained ViT, and so do
PC, PF and PO, on images far from those that it has seen, PD, whose tasks are domains: the same classes in other looks,
and PU, whose classes have unequal numbers of images; S, F1 and F2 start from scratch, and so do R, whose domains are
turned images, and S4 and T, which take hours without a GPU. All methods learn the same tasks in the same order with
the same model; those that train see the same number of images: `--images_per_task`, by default what `wakesleep` sees.
Everything that is kept of the stream counts as memory. Each run becomes one file in `runs`, and is not run again;
table and plots are of all files there.

`wakesleep` runs by the library's recipe (docs/recipe.md). `--set name=value` overrides a training argument, under a
`--name` of its own:

    python examples/benchmarks/cil.py --methods wakesleep --set sleep_average=0.9 --name average
"""

import argparse
import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from cil_benchmarks import BENCHMARKS
from cil_report import write_report
from cil_runs import (
    FIXED,
    UNLIMITED,
    Place,
    Run,
    learn_with_peer,
    learn_with_wakesleep,
    peer_settings,
    record_of,
)
from peers import PEERS

METHODS = ["wakesleep", *PEERS]


def parse_value(text: str) -> tuple[str, object]:
    """Return name and value of `name=value`; the value is JSON where it can be, else a string."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def parse_arguments() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--benchmark", choices=sorted(BENCHMARKS), default="D")
    add("--methods", nargs="+", choices=METHODS, help="by default all that can learn the benchmark's tasks")
    add("--seeds", nargs="+", type=int, default=[1993], help="seeds of the order of classes, of weights and batches")
    add("--budgets", nargs="+", help="bytes of memory, such as 2MB; by default the benchmark's")
    add("--data_dir", type=Path, help="folder with a folder of train.parquet and test.parquet for every data set")
    add("--backbone", help="pretrained ViT, on the Hub or in a folder, for the benchmarks P*")
    add("--output_dir", type=Path, help="by default out/cil-BENCHMARK")
    add("--images_per_task", type=int, help="training images of every peer; by default what wakesleep sees")
    add("--train_images", type=int, help="most training images of a class; by default the benchmark's")
    add("--joint_epochs", type=float, help="epochs of joint and cumulative training; by default the benchmark's")
    add("--lr_scales", nargs="+", type=float, default=[1.0], help="factors of all learning rates of peers")
    add("--codec", help="codec and quality, such as learned:45: peers learn from what it makes of the images")
    add("--bf16", action="store_true", help="bfloat16 autocast, for all methods")
    add("--threads", type=int, help="threads of torch")
    add("--set", nargs="+", type=parse_value, default=[], metavar="NAME=VALUE", help="training arguments of wakesleep")
    add("--name", help="what to call wakesleep with --set")
    add("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    if args.set and not args.name:
        parser.error("--set makes another method of wakesleep: give it a --name")
    cannot = [name for name in PEERS if BENCHMARKS[args.benchmark].looks and PEERS[name].needs_new_classes]
    args.methods = args.methods or [name for name in METHODS if name not in cannot]
    if refused := sorted(set(args.methods) & set(cannot)):
        parser.error(f"{', '.join(refused)} cannot learn tasks without new classes: leave them out of --methods")
    if "wakesleep" in args.methods and args.lr_scales != [1.0]:
        parser.error("--lr_scales are of peers: leave wakesleep out of --methods, or --set its learning rates")
    return args


def plan(args: argparse.Namespace) -> list[Run]:
    """Return the runs of the grid."""
    benchmark = BENCHMARKS[args.benchmark]
    epochs = args.joint_epochs or benchmark.joint_epochs
    epochs_suffix = "" if args.joint_epochs is None else f"-{epochs:g}-epochs"
    codec_suffix = "" if args.codec is None else "-" + args.codec.replace(":", "-")
    runs = []
    for seed in args.seeds:
        for scale in args.lr_scales:
            for method in args.methods:
                is_ours = method == "wakesleep"
                suffix = codec_suffix + (epochs_suffix if method in UNLIMITED else "")
                uses_budget = is_ours or PEERS[method].uses_budget
                ours = {**FIXED, **dict(args.set)}
                runs += [
                    Run(
                        benchmark=args.benchmark,
                        method=method,
                        label=args.name or method if is_ours else f"{method}{suffix}",
                        seed=seed,
                        budget=budget,
                        lr_scale=scale,
                        bf16=args.bf16,
                        images_per_task=None if is_ours else args.images_per_task,
                        train_images=args.train_images,
                        codec=None if is_ours else args.codec,
                        hyper_parameters=ours if is_ours else peer_settings(benchmark, method, epochs),
                    )
                    for budget in ((args.budgets or [benchmark.budget]) if uses_budget else [None])
                ]
    return runs


def perform(run: Run, place: Place, folder: Path) -> None:
    """Do a run, unless its record is there.

    Raises:
        ValueError: If there is a record of another run under its name.
    """
    path = folder / f"{run.name}.json"
    if path.exists():
        stored, wanted = json.loads(path.read_text())["run"], json.loads(json.dumps(asdict(run)))
        changed = sorted(name for name in wanted if wanted[name] != stored.get(name))
        if changed:
            raise ValueError(f"{path} holds another run: {changed} differ. Pass another `--name` or `--output_dir`.")
        return
    benchmark = BENCHMARKS[run.benchmark]
    learn = learn_with_wakesleep if run.method == "wakesleep" else learn_with_peer
    record = record_of(run, benchmark, learn(run, benchmark, place))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    shutil.rmtree(place.scratch / run.name, ignore_errors=True)
    with suppress(OSError):  # stages of another run
        place.scratch.rmdir()
    accuracy, seconds = 100 * record["pooled_accuracy"][-1], record["seconds"]
    print(f"{run.name}: pooled accuracy {accuracy:.1f} in {seconds:.0f} s", flush=True)


def main() -> None:
    """Do all runs that are not done, then write the report of everything in the output folder."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    output_dir = args.output_dir or Path(f"out/cil-{args.benchmark}")
    folder = output_dir / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(args.data_dir, args.backbone, output_dir / "stages", not args.quiet)
    for run in plan(args):
        perform(run, place, folder)
    text = write_report([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))], output_dir)
    print(f"\n{text}\n\n{output_dir.resolve()}: cil.md, plots and runs")


if __name__ == "__main__":
    main()
