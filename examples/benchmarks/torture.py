"""Do to a run what happens to runs, and print a table of what came of it.

    python examples/benchmarks/torture.py kills --kills 40 --processes 1
    python examples/benchmarks/torture.py kills --kills 10 --processes 2

`kills`: `kill -9` at random moments of `train_cil.py` on digits, then the same command with `--resume_from_checkpoint
true`, which may be killed again. Every run must end with the weights, the memory and the history (but for its seconds)
of a run that was never killed, bit for bit. With two processes every other kill strikes only one of them. Arguments
behind `--` go to `train_cil.py`. The exit status is the number of kills whose run ended otherwise.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

EXAMPLES = Path(__file__).resolve().parents[1]
# The digits with a shorter sleep: about 19 steps awake and 60 asleep for each of 5 tasks, checkpoints every 7 steps.
SHORT = ["--sleep_steps", "60", "--save_strategy", "steps", "--save_steps", "7", "--disable_tqdm", "true"]
AIMS = ("any moment", "checkpoint", "any moment", "stage")  # what a kill waits for after a random time
SECONDS = {"wake_seconds", "sleep_seconds", "seconds"}
PATIENCE = 600  # seconds after which a run that neither ends nor saves anything is given up


@dataclass
class Kill:
    """One kill.

    Args:
        run (`str`): Folder of the run.
        aim (`str`): What it waited for.
        phase (`str`): What the run was doing, as its folder tells.
        lost (`float`): Seconds of work since the last thing that was saved.
        restart (`float`): Seconds from the next start of the command until the run went on.
    """

    run: str
    aim: str
    phase: str
    lost: float
    restart: float = 0.0


class Run:
    """A run of `train_cil.py` in a folder, which can be started, killed and started again.

    Args:
        folder (`Path`): Its output folder.
        processes (`int`): Number of processes.
        train_args (`list[str]`): Arguments of `train_cil.py`.
    """

    def __init__(self, folder: Path, processes: int, train_args: list[str]):
        self.folder = folder
        self.processes = processes
        launcher = [sys.executable]
        if processes > 1:
            config = EXAMPLES / "accelerate" / "two_cpu_processes.yaml"
            launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
            launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
        self.command = [*launcher, str(EXAMPLES / "train_cil.py"), "--output_dir", str(folder), *train_args]
        self.command += ["--use_cpu", "true", "--resume_from_checkpoint", "true"]
        self.process: subprocess.Popen | None = None

    def start(self) -> float:
        """Start the command; return the seconds until it has begun or gone on."""
        history, started = self.folder / "history.json", time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        while self.process.poll() is None and not (history.exists() and history.stat().st_mtime >= started):
            time.sleep(0.01)
        return time.time() - started

    def is_running(self) -> bool:
        """Whether it has neither ended nor been killed."""
        return self.process.poll() is None

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            RuntimeError: If it fails.
        """
        if self.process.wait(PATIENCE) != 0:
            raise RuntimeError(f"{self.folder} failed with {self.process.returncode}; see {self.folder}.log")

    def kill(self, only_one: bool) -> None:
        """Kill all its processes at once, or only the last of them, whose death ends the others."""
        everyone = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in everyone[-1:] if only_one else everyone:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(everyone, timeout=PATIENCE)
        self.process.wait(PATIENCE)

    def saved(self) -> list[Path]:
        """Return what a resumed run could go on from: checkpoints, written memories and stages."""
        patterns = ("task-*", "checkpoints/task-*/written", "checkpoints/task-*/checkpoint-*")
        return [path for pattern in patterns for path in self.folder.glob(pattern)]

    def phase(self) -> str:
        """Return what a killed run was doing."""
        if list(self.folder.glob(".task-*.tmp")):
            return "saving a stage"
        if list(self.folder.glob("checkpoints/*/.*.tmp")) + list(self.folder.glob("checkpoints/.*.tmp")):
            return "writing or removing a checkpoint"
        done = [path.name for path in self.folder.glob("task-*")]
        inside = [path for path in self.saved() if path.parent.parent.name == "checkpoints"]
        inside = [path for path in inside if path.parent.name not in done]
        if not inside:
            return "between tasks or writing memory"
        last = max(inside, key=lambda path: int(path.name.removeprefix("checkpoint-").replace("written", "0")))
        return "asleep or after" if (last / "sleep.pt").exists() else "awake"

    def outcome(self) -> dict[str, str]:
        """Return digests of the weights, memory and history of all stages, and the names of what should not be."""
        digests = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.name == "history.json":
                content = json.dumps(without_seconds(json.loads(path.read_text())))
                digests[name] = hashlib.sha256(content.encode()).hexdigest()
            elif path.is_file() and (path.suffix == ".safetensors" or path.parent.name == "memory"):
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.name == "checkpoints" or path.name.startswith("."):
                digests[name] = "left behind"
        return digests


def without_seconds(content):
    """Return a history without the seconds in it."""
    if isinstance(content, dict):
        return {key: without_seconds(value) for key, value in content.items() if key not in SECONDS}
    return [without_seconds(item) for item in content] if isinstance(content, list) else content


def run_whole(run: Run) -> tuple[float, float, float]:
    """Run without a kill; return the seconds of the start, of the rest, and the longest between two saved things."""
    start, began = run.start(), time.perf_counter()
    known, last, longest = 0, began, 0.0
    while run.is_running():
        if len(run.saved()) != known:
            known, now = len(run.saved()), time.perf_counter()
            last, longest = now, max(longest, now - last)
        time.sleep(0.01)
    run.finish()
    return start, time.perf_counter() - began, longest


def strike(run: Run, aim: str, delay: float, only_one: bool) -> Kill | None:
    """Kill a run that has been started, after some seconds and, if so aimed, at the next write; `None` if it ended."""
    until, pattern = time.perf_counter() + delay, {"stage": ".task-*.tmp", "checkpoint": "checkpoints/*/.*.tmp"}
    while run.is_running():
        if time.perf_counter() >= until and (aim not in pattern or list(run.folder.glob(pattern[aim]))):
            written, killed = [*run.saved(), run.folder / "history.json"], time.time()
            since = max(path.stat().st_mtime for path in written if path.exists())
            if not run.is_running():
                return None
            run.kill(only_one)
            return Kill(run.folder.name, aim, run.phase(), killed - since)
        time.sleep(0.0005)
    return None


def torture(run: Run, kills: int, seconds: float, generator: random.Random) -> tuple[list[Kill], float]:
    """Kill a run so many times, as far as it does not end before, and let it end; return kills and all seconds."""
    struck, began = [], time.perf_counter()
    while True:
        restart = run.start()
        if struck:
            struck[-1].restart = restart
        if len(struck) < kills:
            delay = generator.uniform(0, 1.6 * seconds / (kills + 1))
            only_one = run.processes > 1 and len(struck) % 2 == 1
            kill = strike(run, generator.choice(AIMS), delay, only_one)
            if kill is not None:
                struck.append(kill)
                continue
        run.finish()
        return struck, time.perf_counter() - began


def kill_runs(
    output_dir: Path, processes: int, kills: int, per_run: int, seed: int, train_args: list[str]
) -> Iterator[str]:
    """Kill runs until there have been so many kills; yield the lines of a table, and a last one with the failures."""
    whole = Run(output_dir / f"whole-{processes}", processes, train_args)
    start, seconds, interval = run_whole(whole)
    expected, generator = whole.outcome(), random.Random(seed)
    yield f"never killed, {processes} processes: {start:.1f} s to start, {seconds:.1f} s to learn"
    yield "| run | kill | waited for | killed while | seconds lost | seconds to go on | ends identical |"
    yield "|---|---|---|---|---|---|---|"
    done, failed, all_kills, extra = 0, 0, [], []
    while done < kills:
        run = Run(output_dir / f"killed-{processes}-{len(extra):02d}", processes, train_args)
        struck, total = torture(run, min(per_run, kills - done), seconds, generator)
        outcome = run.outcome()
        differing = sorted(name for name in {*expected, *outcome} if expected.get(name) != outcome.get(name))
        verdict = "yes" if not differing else f"NO: {', '.join(differing[:3])}"
        for kill in struck:
            done += 1
            cells = [kill.run, done, kill.aim, kill.phase, f"{kill.lost:.1f}", f"{kill.restart:.1f}", verdict]
            yield f"| {' | '.join(map(str, cells))} |"
        failed += len(struck) if differing else 0
        all_kills += struck
        extra += [(total - start - seconds) / max(1, len(struck))]
    yield f"{done - failed} of {done} kills ended identical"
    lost, restart = max(kill.lost for kill in all_kills), max(kill.restart for kill in all_kills)
    yield f"longest between two saved things {interval:.1f} s, most work lost by a kill {lost:.1f} s"
    yield f"start without a kill {start:.1f} s, slowest start after one {restart:.1f} s"
    yield (
        f"seconds that a kill cost, as the mean of a run: {sum(extra) / len(extra):.1f} on average, "
        f"{max(extra):.1f} at most, {interval + 10:.1f} allowed"
    )
    yield str(failed)


def add_kills(commands) -> None:
    """Add the command `kills`."""
    parser = commands.add_parser("kills", help="kill -9 at random moments, then go on")
    parser.add_argument("--kills", type=int, default=40, help="number of kills")
    parser.add_argument("--per_run", type=int, default=5, help="kills of one run before it may end")
    parser.add_argument("--processes", type=int, default=1, help="processes of every run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--output_dir", type=Path, default=Path("out/torture"), help="where the runs go")
    parser.set_defaults(function=kills)


def kills(args: argparse.Namespace, train_args: list[str]) -> int:
    """Print the table of `kills`, line by line; return the number of failures."""
    lines = kill_runs(args.output_dir, args.processes, args.kills, args.per_run, args.seed, [*SHORT, *train_args])
    *_, failed = (print(line, flush=True) or line for line in lines)
    return int(failed)


def main() -> int:
    """Run one of the commands."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    add_kills(commands)
    args = parser.parse_args(sys.argv[1:split])
    return args.function(args, sys.argv[split + 1 :])


if __name__ == "__main__":
    raise SystemExit(main())
