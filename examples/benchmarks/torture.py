"""Do to runs, to stages and to the library what happens to them, and print a table of what came of it.

    python examples/benchmarks/torture.py                                   # all of this:
    python examples/benchmarks/torture.py kills --kills 40 --processes 1
    python examples/benchmarks/torture.py kills --kills 10 --processes 2
    python examples/benchmarks/torture.py stages --count 2000
    python examples/benchmarks/torture.py inputs

`kills`: `kill -9` at random moments of `train_cil.py` on digits, then the same command with `--resume_from_checkpoint
true`, which may be killed again. Every run must end with the weights, the memory and the history (but for its seconds)
of a run that was never killed, bit for bit. With two processes every other kill strikes only one of them. Going on
may cost one checkpoint interval and 10 seconds. Arguments behind `--` go to `train_cil.py`.

`stages`: stages that are damaged, mixed up or forged. `inputs`: malformed images, labels, streams, arguments, codes.
Each must give one clear error or the exact right result, and is tried in a process of its own, which may neither
crash nor hang. They are those of the tests, and need what the tests need.

The exit status is 0 if nothing failed.
"""

import argparse
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torture_kills import kill_runs
from transformers.utils import logging

# The digits with a shorter sleep: about 19 steps awake and 60 asleep for each of 5 tasks, checkpoints every 7 steps.
SHORT = ["--sleep_steps", "60", "--save_strategy", "steps", "--save_steps", "7", "--disable_tqdm", "true"]
ALL = (["kills"], ["kills", "--kills", "10", "--processes", "2"], ["stages"], ["inputs"])
PATIENCE = 120  # seconds that one stage or input may take on a busy machine
TESTS = Path(__file__).resolve().parents[2] / "tests"


@dataclass(frozen=True)
class Row:
    """What came of one sort of torture.

    Args:
        name (`str`): Its name.
        times (`int`): How often it was done.
        failures (`int`): How often it ended otherwise than it must.
        cost (`float`, *optional*): Seconds that the worst kill cost.
        allowed (`float`, *optional*): Seconds that it may cost.
    """

    name: str
    times: int
    failures: int
    cost: float | None = None
    allowed: float | None = None

    def __str__(self) -> str:
        seconds = ["" if value is None else f"{value:.1f}" for value in (self.cost, self.allowed)]
        return f"| {self.name} | {self.times:,} | {self.failures} | {' | '.join(seconds)} |"


def kills(args: argparse.Namespace) -> Row:
    """Do what the command `kills` says."""
    train_args = [*SHORT, *args.train_args]
    struck, interval = kill_runs(args.output_dir, args.processes, args.kills, args.per_run, args.seed, train_args)
    failures = sum(bool(kill.differing) for kill in struck)
    name = f"kills, {args.processes} process{'es' if args.processes > 1 else ''}"
    return Row(name, len(struck), failures, max(kill.cost for kill in struck), interval + 10)


def stages(args: argparse.Namespace) -> Row:
    """Do what the command `stages` says."""
    from mutations import make_subjects

    with tempfile.TemporaryDirectory() as folder:
        return mutate_stages(make_subjects(Path(folder)), args.count, Path(folder))


def mutate_stages(subjects: list, count: int, folder: Path) -> Row:
    """Load so many mutated stages, which are written to a folder one after another."""
    from mutations import mutated

    trials = (lambda number=number: mutated(subjects, number, folder) for number in range(count))
    return Row("mutated stages", count, report(trials))


def inputs(args: argparse.Namespace) -> Row:
    """Do what the command `inputs` says."""
    from malformed import cases, verdict

    with tempfile.TemporaryDirectory() as folder:
        chosen = cases(Path(folder))[:: args.every]
        return Row("malformed inputs", len(chosen), report(lambda case=case: verdict(case) for case in chosen))


def report(trials: Iterable[Callable[[], str | None]]) -> int:
    """Make trials, print what is wrong, and return in how many of them something is."""
    failures = 0
    for trial in trials:
        problem = isolated(trial)
        if problem is not None:
            print(problem, flush=True)
            failures += 1
    return failures


def isolated(trial: Callable[[], str | None], seconds: float = PATIENCE) -> str | None:
    """Make a trial in a process of its own; return what is wrong with what came of it, `None` if nothing is.

    Args:
        trial (`Callable`): Returns what is wrong, or `None`.
        seconds (`float`): Seconds after which it counts as a hang.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(trial()))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else f"hang: {seconds} seconds and no end"
    except EOFError:
        process.join()
        return f"crash: the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def read_arguments(command: list[str], train_args: list[str]) -> argparse.Namespace:
    """Return the arguments of one command; they say which function does it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    one = commands.add_parser("kills", help="kill -9 at random moments, then go on")
    one.add_argument("--kills", type=int, default=40, help="number of kills")
    one.add_argument("--per_run", type=int, default=5, help="kills of one run before it may end")
    one.add_argument("--processes", type=int, default=1, help="processes of every run")
    one.add_argument("--seed", type=int, default=0, help="seed of the moments")
    one.add_argument("--output_dir", type=Path, default=Path("out/torture"), help="where the runs go")
    one.set_defaults(function=kills, train_args=train_args)
    one = commands.add_parser("stages", help="load damaged, mixed-up and forged stages")
    one.add_argument("--count", type=int, default=2_000, help="number of stages")
    one.set_defaults(function=stages)
    one = commands.add_parser("inputs", help="give the library malformed images, labels, streams, arguments and codes")
    one.add_argument("--every", type=int, default=1, help="which of them; 1 for all, 10 for every tenth")
    one.set_defaults(function=inputs)
    return parser.parse_args(command)


def main() -> int:
    """Run one of the commands, or all."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, train_args = sys.argv[1:split], sys.argv[split + 1 :]
    commands = [read_arguments(command, train_args) for command in ([given] if given else ALL)]
    sys.path.insert(0, str(TESTS))
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = [args.function(args) for args in commands]
    print("| torture | times | failures | most seconds that a kill cost | allowed |\n|---|---|---|---|---|")
    print(*rows, sep="\n")
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
