"""Fill a memory with a million codes, save and load it, and read batches from it.

    python examples/benchmarks/memory_scale.py

Codes are made up: grey strips of noise, 300 bytes each, of 1,000 classes in 10 tasks. Prints seconds and memory of
every phase, in a process of its own, and how long a class-balanced batch of 256 takes to draw, read and decode; images
that were decoded before, which a memory of 10,000 would soon all hold, are not used. A minute.
"""

import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np
from transformers import HfArgumentParser

from hf_wakesleep import RawCodec, SemiParametricMemory

BATCH, BATCHES = 256, 200


@dataclass
class Arguments:
    """How much to remember."""

    sizes: list[int] = field(default_factory=lambda: [10_000, 1_000_000], metadata={"help": "Numbers of codes."})
    code_bytes: int = field(default=300, metadata={"help": "Bytes of a code."})
    num_classes: int = field(default=1_000, metadata={"help": "Number of classes."})
    num_tasks: int = field(default=10, metadata={"help": "Number of tasks in which the codes are written."})
    phase: str | None = field(default=None, metadata={"help": "Internal: what one process does."})
    folder: str | None = field(default=None, metadata={"help": "Internal: where the memory lies."})


def peak() -> float:
    """Return the peak of this process's resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(args: Arguments, folder: str) -> None:
    """Fill a memory task by task, and save it."""
    generator = np.random.default_rng(0)
    memory = SemiParametricMemory(RawCodec())
    memory.add_classes([f"class {label}" for label in range(args.num_classes)], 0)
    per_task = args.sizes[0] // args.num_tasks
    classes = np.array_split(np.arange(args.num_classes), args.num_tasks)
    for task in range(args.num_tasks):
        head = struct.pack("<BHH", 1, 1, args.code_bytes - 5)  # a grey strip, as `RawCodec` writes it
        codes = [head + generator.bytes(args.code_bytes - len(head)) for _ in range(per_task)]
        memory.write(codes, np.resize(classes[task], per_task), task)
    memory.save(folder)


def read(args: Arguments, folder: str) -> float:
    """Load the memory and return the median milliseconds of a batch."""
    memory = SemiParametricMemory.load(folder)
    if len(memory) != args.sizes[0]:
        raise ValueError(f"Expected {args.sizes[0]} codes, got {len(memory)}.")
    draw, seconds = memory.balanced(), []
    for number in range(BATCHES):
        start = time.perf_counter()
        memory.codec.decode(memory.codes(draw.positions(BATCH, (1,), number * BATCH)))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def run_phase(args: Arguments) -> None:
    """Do one phase and print its peak memory, seconds and milliseconds of a batch."""
    base, start = peak(), time.perf_counter()
    batch = {"write": write, "read": read}[args.phase](args, args.folder) or 0.0
    print(f"{peak() - base} {time.perf_counter() - start} {batch}")


def main() -> None:
    """Run every phase in a process of its own."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if args.phase:
        run_phase(args)
        return
    batches = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for phase in ("write", "read"):
                command = [sys.executable, __file__, "--phase", phase, "--folder", folder, "--sizes", str(size)]
                for name in ("code_bytes", "num_classes", "num_tasks"):
                    command += [f"--{name}", str(getattr(args, name))]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                memory, seconds, batch = map(float, done.stdout.split())
                print(
                    f"{size:>9,d} codes  {phase:5s} {seconds:7.1f} s  {memory:7.0f} MB beyond the interpreter", end=""
                )
                print(f"  {batch:.2f} ms a batch of {BATCH}" if batch else "", flush=True)
        batches.append(batch)
    print(f"batch with {args.sizes[-1]:,d} codes / with {args.sizes[0]:,d}: {batches[-1] / batches[0]:.2f}")


if __name__ == "__main__":
    main()
