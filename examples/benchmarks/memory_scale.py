"""Fill a memory with a million codes, save and load it, and read batches from it.

    python examples/benchmarks/memory_scale.py

Codes are made up: grey strips of noise, 300 bytes each, of 1,000 classes in 10 tasks. Prints seconds and memory of
every phase, in a process of its own, and how long a class-balanced batch of 256 takes to draw, read and decode, all
sizes in turns; images that were decoded before, which a memory of 10,000 would soon all hold, are not used. A minute.
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
from hf_wakesleep.codecs.base import add_checksum

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
    memory.set_classes([f"class {label}" for label in range(args.num_classes)], 0)
    per_task = args.sizes[0] // args.num_tasks
    classes = np.array_split(np.arange(args.num_classes), args.num_tasks)
    for task in range(args.num_tasks):
        pixels = args.code_bytes - 7
        head = struct.pack("<BHH", 1, 1, pixels)  # a grey strip, as `RawCodec` writes it
        codes = [add_checksum(head + generator.bytes(pixels)) for _ in range(per_task)]
        memory.write(codes, np.resize(classes[task], per_task), task)
    memory.save(folder)


def load(size: int, folder: str) -> SemiParametricMemory:
    """Return the memory of `size` codes in a folder."""
    memory = SemiParametricMemory.load(folder)
    if len(memory) != size:
        raise ValueError(f"Expected {size} codes, got {len(memory)}.")
    return memory


def read(args: Arguments, folder: str) -> None:
    """Load the memory and read batches from it."""
    read_in_turns([load(args.sizes[0], folder)])


def read_in_turns(memories: list[SemiParametricMemory]) -> list[float]:
    """Return the median milliseconds of a batch of each memory, read in turns: the machine's own pace may change."""
    draws = [memory.balanced_sampler() for memory in memories]
    seconds = [[] for _ in memories]
    for number in range(BATCHES):
        for memory, draw, taken in zip(memories, draws, seconds, strict=True):
            start = time.perf_counter()
            memory.codec.decode(memory.codes(draw.draw(BATCH, (1,), number * BATCH)))
            taken.append(time.perf_counter() - start)
    return [1000 * statistics.median(taken) for taken in seconds]


def run_phase(args: Arguments) -> None:
    """Do one phase and print its peak memory and seconds."""
    base, start = peak(), time.perf_counter()
    {"write": write, "read": read}[args.phase](args, args.folder)
    print(f"{peak() - base} {time.perf_counter() - start}")


def main() -> None:
    """Run every phase in a process of its own, then read batches of all sizes."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if args.phase:
        run_phase(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for phase in ("write", "read"):
                command = [sys.executable, __file__, "--phase", phase, "--folder", f"{folder}/{size}"]
                for name in ("code_bytes", "num_classes", "num_tasks"):
                    command += [f"--{name}", str(getattr(args, name))]
                done = subprocess.run([*command, "--sizes", str(size)], capture_output=True, text=True, check=True)
                memory, seconds = map(float, done.stdout.split())
                print(
                    f"{size:>9,d} codes  {phase:5s} {seconds:7.1f} s  {memory:7.0f} MB beyond the interpreter",
                    flush=True,
                )
        batches = read_in_turns([load(size, f"{folder}/{size}") for size in args.sizes])
    for size, batch in zip(args.sizes, batches, strict=True):
        print(f"{size:>9,d} codes  {batch:.2f} ms a batch of {BATCH}, {batch / batches[0]:.2f} of the first")


if __name__ == "__main__":
    main()
