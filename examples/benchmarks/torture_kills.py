"""Kills of `train_cil.py` on digits at random moments, and what going on after each of them costs."""

import glob
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

EXAMPLES = Path(__file__).resolve().parents[1]
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
        at (`float`): Seconds that the command had run for, in all its starts.
        restart (`float`): Seconds from the next start of the command until the run went on.
        cost (`float`): Seconds that the next thing was saved later than without the kill.
        differing (`list[str]`): Files of the finished run that are not as without a kill.
    """

    run: str
    aim: str
    phase: str
    lost: float
    at: float
    restart: float = 0.0
    cost: float = 0.0
    differing: list[str] = field(default_factory=list)


class Run:
    """A run of `train_cil.py` in a folder, which can be started, killed and started again.

    Args:
        folder (`Path`): Its output folder.
        processes (`int`): Number of processes.
        train_args (`list[str]`): Arguments of `train_cil.py`.

    Attributes:
        saves (`dict[str, float]`): Seconds that the command had run for, in all its starts, when each thing that it
            saved was there; the last is its end.
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
        self.saves: dict[str, float] = {}
        self._seconds, self._began = 0.0, 0.0  # of the starts before, and when the last one was

    def start(self) -> float:
        """Start the command; return the seconds until it has begun or gone on."""
        history, started = self.folder / "history.json", time.time()
        self._began = time.perf_counter()
        paths = [str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        while self.process.poll() is None and not (history.exists() and history.stat().st_mtime >= started):
            time.sleep(0.01)
        return time.perf_counter() - self._began

    def seconds(self) -> float:
        """Return how long the command has run for, in all its starts."""
        return self._seconds + time.perf_counter() - self._began

    def watch(self) -> None:
        """Take note of what has been saved."""
        for path in self.saved():
            self.saves.setdefault(str(path.relative_to(self.folder)), self.seconds())

    def is_running(self) -> bool:
        """Whether it has neither ended nor been killed."""
        return self.process.poll() is None

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            RuntimeError: If it fails, or does nothing any more.
        """
        while self.is_running():
            self.watch()
            if self.seconds() - max(self.saves.values(), default=0.0) > PATIENCE:
                self.kill(only_one=False)
            time.sleep(0.01)
        self.saves["end"] = self.seconds()
        if self.process.returncode != 0:
            raise RuntimeError(f"{self.folder} failed with {self.process.returncode}; see {self.folder}.log")

    def kill(self, only_one: bool) -> float:
        """Kill all its processes at once, or only the last, whose death ends the others; return `seconds`."""
        everyone = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in everyone[-1:] if only_one else everyone:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(everyone, timeout=PATIENCE)
        self.process.wait(PATIENCE)
        self.watch()
        self._seconds = self.seconds()
        return self._seconds

    def saved(self) -> list[Path]:
        """Return what a resumed run could go on from: checkpoints, ingested tasks and stages."""
        patterns = ("task-*", "checkpoints/task-*/ingest", "checkpoints/task-*/checkpoint-*")
        return [path for pattern in patterns for path in found(self.folder, pattern)]

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
        last = max(inside, key=lambda path: int(path.name.removeprefix("checkpoint-").replace("ingest", "0")))
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


def found(folder: Path, pattern: str) -> list[Path]:
    """Return what matches in a folder in which a run makes and removes things meanwhile; `Path.glob` would fail."""
    return [folder / name for name in glob.glob(pattern, root_dir=folder)]


def time_of(path: Path) -> float:
    """Return when a path was last changed; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def without_seconds(content):
    """Return a history without the seconds in it."""
    if isinstance(content, dict):
        return {key: without_seconds(value) for key, value in content.items() if key not in SECONDS}
    return [without_seconds(item) for item in content] if isinstance(content, list) else content


def strike(run: Run, aim: str, delay: float, only_one: bool) -> Kill | None:
    """Kill a run that has been started, after some seconds and, if so aimed, at the next write; `None` if it ended."""
    until, pattern = run.seconds() + delay, {"stage": ".task-*.tmp", "checkpoint": "checkpoints/*/.*.tmp"}
    while run.is_running():
        run.watch()
        if run.seconds() >= until and (aim not in pattern or found(run.folder, pattern[aim])):
            written, killed = [*run.saved(), run.folder / "history.json"], time.time()
            since = max(map(time_of, written))
            if not run.is_running():
                return None
            at = run.kill(only_one)
            return Kill(run.folder.name, aim, run.phase(), killed - since, at)
        time.sleep(0.0005)
    return None


def torture(run: Run, kills: int, whole: Run, generator: random.Random) -> list[Kill]:
    """Kill a run so many times, as far as it does not end before, and let it end; return the kills."""
    struck = []
    while True:
        restart = run.start()
        if struck:
            struck[-1].restart = restart
        if len(struck) < kills:
            delay = generator.uniform(0, 1.6 * whole.saves["end"] / (kills + 1))
            only_one = run.processes > 1 and len(struck) % 2 == 1
            kill = strike(run, generator.choice(AIMS), delay, only_one)
            if kill is not None:
                struck.append(kill)
                continue
        run.finish()
        set_costs(struck, run.saves, whole.saves)
        return struck


def set_costs(kills: list[Kill], saves: dict[str, float], usual: dict[str, float]) -> None:
    """Set what each kill of a run cost: by how much the stretch of work that it fell into took longer than usual.

    A stretch lies between two saved things. Several kills inside one share what it took longer.

    Args:
        kills (`list[Kill]`): All kills of the run.
        saves (`dict[str, float]`): [`Run.saves`] of the run.
        usual (`dict[str, float]`): The same of a run that was never killed.
    """
    known = sorted((seconds, name) for name, seconds in saves.items() if name in usual)
    for kill in kills:
        before = max([save for save in known if save[0] <= kill.at], default=(0.0, ""))
        after = min(save for save in known if save[0] > kill.at)
        inside = [other for other in kills if before[0] <= other.at < after[0]]
        kill.cost = (after[0] - before[0] - usual[after[1]] + usual.get(before[1], 0.0)) / len(inside)


def kill_runs(
    output_dir: Path, processes: int, kills: int, per_run: int, seed: int, train_args: list[str]
) -> tuple[list[Kill], float]:
    """Kill runs until there have been so many kills, and print each; return them and the longest checkpoint interval.

    Args:
        output_dir (`Path`): Where the runs go.
        processes (`int`): Processes of every run.
        kills (`int`): Number of kills.
        per_run (`int`): Kills of one run before it may end.
        seed (`int`): Seed of the moments.
        train_args (`list[str]`): Arguments of `train_cil.py`.
    """
    if (output_dir / f"whole-{processes}").exists():
        raise SystemExit(f"{output_dir} holds such runs already. Remove it, or pass another `--output_dir`.")
    whole = Run(output_dir / f"whole-{processes}", processes, train_args)
    start = whole.start()
    whole.finish()
    times = [start, *whole.saves.values()]
    expected, generator = whole.outcome(), random.Random(seed)
    print(f"never killed, {processes} process(es): {start:.1f} s to start, {times[-1] - start:.1f} s to learn")
    print("| run | kill | waited for | killed while | seconds lost | seconds to go on | cost, seconds | identical |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    done, runs = [], 0
    while len(done) < kills:
        run, runs = Run(output_dir / f"killed-{processes}-{runs:02d}", processes, train_args), runs + 1
        struck = torture(run, min(per_run, kills - len(done)), whole, generator)
        outcome = run.outcome()
        differing = sorted(name for name in {*expected, *outcome} if expected.get(name) != outcome.get(name))
        for kill in struck:
            kill.differing = differing
            done.append(kill)
            seconds = [f"{value:.1f}" for value in (kill.lost, kill.restart, kill.cost)]
            cells = [kill.run, str(len(done)), kill.aim, kill.phase, *seconds]
            print(f"| {' | '.join([*cells, f'NO: {differing[:3]}' if differing else 'yes'])} |", flush=True)
    return done, max(later - earlier for earlier, later in itertools.pairwise(times))
