"""Mutations of stages: what a disk, a network or a stranger may do to one, and what loading it then must give."""

import hashlib
import io
import json
import pickle
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from conftest import FAST, PARTS, digits_of, images_of
from forgeries import ABSURD, CODES, CONFIG, FORGERIES, HISTORY, MEMORY, WEIGHTS, reseal
from transformers import AutoModelForImageClassification, ViTConfig, set_seed

from hf_wakesleep import (
    ClassIncrementalStream,
    Codec,
    ContinualTrainer,
    ContinualTrainingArguments,
    History,
    LearnedCodec,
    RawCodec,
    SemiParametricMemory,
    TaskStream,
    WakeSleepConfig,
    WakeSleepForImageClassification,
    collect_facts,
    render_model_card,
)
from hf_wakesleep.model.digests_wakesleep import write_digests

SECONDS = 60  # that loading a stage in every way may take, on a busy machine, before it counts as a hang
REFUSALS = (ValueError, OSError)  # documented; anything else that escapes is a crash
SENTINEL = "executed"

UNREAD = ("README.md", "history.png")


class Hang(BaseException):
    """Loading took longer than `SECONDS`."""


@dataclass(frozen=True)
class Mutation:
    """What was done to a stage.

    Args:
        name (`str`): In words.
        expected (`str`): `"refused"` (going on is an error), `"same"` (all is as it was), `"refused or same"`,
            `"forged"` (the model and going on are refused or the same), or `"any"` (a well-formed stage that
            somebody else made: no crash, no hang).
    """

    name: str
    expected: str


# Runs


def make_run(folder: Path, seed: int, classes: range, codec: Codec | None = None) -> TaskStream:
    """Train two tasks of one class each, save their stages in `folder`, and return the stream of three tasks."""
    set_seed(seed)
    vit = ViTConfig(image_size=8, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    vit.num_attention_heads = 2
    model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=vit, pooling="mean", image_size=8))
    stream = ClassIncrementalStream(digits_of(classes, 6), num_tasks=3, seed=seed)
    args = ContinualTrainingArguments(str(folder), **{**FAST, "sleep_steps": 1, "memory_budget": "1MB", "seed": seed})
    ContinualTrainer(model, args, TaskStream(stream[:2], stream.protocol), codec=codec).train()
    return stream


@dataclass(frozen=True)
class Subject:
    """A stage to mutate, others of the same and of other runs, the stream, and what loading the stage gives."""

    stage: Path
    others: list[Path]
    stream: TaskStream
    original: dict[str, str | None]


def make_subjects(folder: Path) -> list[Subject]:
    """Make stages whose memories are coded by WebP, twice as often as by the learned codec, as it ships and fitted."""
    codecs = {"a": None, "learned": LearnedCodec(), "fitted": LearnedCodec().fit(list(images_of(4)), steps=1)}
    streams = {name: make_run(folder / name, 0, range(3), codec) for name, codec in codecs.items()}
    make_run(folder / "b", 1, range(3, 6))
    make_run(folder / "c", 0, range(3), RawCodec())
    last = {name: folder / name / "task-02" for name in (*codecs, "b", "c")}
    others = {"a": ("b", "c"), "learned": ("a", "fitted"), "fitted": ("learned", "b")}
    found = {
        name: Subject(
            last[name],
            [folder / name / "task-01", *(last[other] for other in others[name])],
            stream,
            fingerprints(last[name], stream),
        )
        for name, stream in streams.items()
    }
    return [found[name] for name in ("a", "learned", "a", "fitted")]


# Loading


def fingerprints(stage: Path, stream: TaskStream, *, auto: bool = False) -> dict[str, str | None]:
    """Load a stage in every way that the library has, and return a digest of what each gave; `None` if it refused."""
    return {
        "model": _digest(lambda: _model_content(_load_model(stage, auto))),
        "memory": _digest(lambda: _memory_content(SemiParametricMemory.load(stage / "memory"))),
        "history": _digest(lambda: [History.load(stage).to_dict()]),
        "going on": _digest(lambda: _going_on(stage, stream, auto)),
    }


def _digest(load: Callable[[], list]) -> str | None:
    try:
        content = load()
    except REFUSALS as error:
        if len(str(error)) < 20:
            raise AssertionError(f"An error should say what was expected and found, got {error!r}.") from error
        return None
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _load_model(stage: Path, auto: bool) -> WakeSleepForImageClassification:
    model = (AutoModelForImageClassification if auto else WakeSleepForImageClassification).from_pretrained(stage)
    if not isinstance(model, WakeSleepForImageClassification):
        raise ValueError(f"transformers took it for a {type(model).__name__}, as its configuration says")
    return model


def _going_on(stage: Path, stream: TaskStream, auto: bool) -> list:
    args = ContinualTrainingArguments(str(stage.parent / "next"), **FAST)
    trainer = ContinualTrainer(_load_model(stage, auto), args, stream)
    card = render_model_card(collect_facts(trainer.model, trainer.history, trainer.memory))
    card.encode()
    return [
        *_model_content(trainer.model),
        *_memory_content(trainer.memory),
        trainer.history.to_dict(),
        card,
    ]


def _model_content(model: WakeSleepForImageClassification) -> list:
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    state = [(name, tensor.numpy().tobytes()) for name, tensor in sorted(model.state_dict().items())]
    return [json.dumps(config, sort_keys=True, default=str), state]


def _memory_content(memory: SemiParametricMemory | None) -> list:
    if memory is None:
        return [None]
    images = memory.read(np.arange(len(memory)))[0].numpy().tobytes() if len(memory) else b""
    settings = memory.codec.name, memory.codec.settings(), memory.budget, memory.statistics_bytes
    return [settings, memory.classes, memory.labels.tolist(), memory.tasks.tolist(), memory.num_bytes, images]


def verdict(mutation: Mutation, stage: Path, stream: TaskStream, original: dict, *, auto: bool = False) -> str | None:
    """Load a mutated stage and return what is wrong with the result; `None` if it is as expected."""
    try:
        with _time_limit():
            found = fingerprints(stage, stream, auto=auto)
    except (RecursionError, TypeError) as error:
        return None if auto and _in_transformers(error) else f"{mutation.name}: {error!r}"
    except (Exception, Hang) as error:  # noqa: BLE001  a crash is what is looked for, of any kind
        return f"{mutation.name}: {type(error).__name__}: {str(error)[:300]}"
    if (stage / SENTINEL).exists():
        return f"{mutation.name}: code was executed"
    differs = sorted(part for part, digest in found.items() if digest not in (None, original[part]))
    refused = sorted(part for part, digest in found.items() if digest is None)
    is_wrong = {
        "refused": found["going on"] is not None,
        "same": bool(differs or refused),
        "refused or same": bool(differs),
        "forged": bool({"going on", "model"} & set(differs)),
        "any": False,
    }[mutation.expected]
    return f"{mutation.name}: expected {mutation.expected}, {differs} differ, {refused} refused" if is_wrong else None


def mutated(subjects: list[Subject], number: int, folder: Path) -> str | None:
    """Mutate one of the stages in a folder, which is empty afterwards; return what is wrong with loading the result.

    Args:
        subjects (`list[Subject]`): The stages, which take turns.
        number (`int`): Decides what is done.
        folder (`Path`): Where it is done.
    """
    one, folder = subjects[number // PARTS % len(subjects)], folder / str(number)
    folder.mkdir()
    mutation = mutate(one.stage, one.others, folder / "task-02", random.Random(number))
    problem = verdict(mutation, folder / "task-02", one.stream, one.original, auto=number % 3 == 0)
    shutil.rmtree(folder)
    return f"{number}: {problem}" if problem else None


def _in_transformers(error: BaseException) -> bool:
    """Whether an error comes from `AutoConfig`, which reads a configuration before anything of the library runs."""
    frames = {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)}
    return "configuration_auto.py" in frames and not [name for name in frames if "_wakesleep" in name]


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_):
        raise Hang(f"{SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Mutations


def mutate(stage: Path, others: list[Path], target: Path, generator: random.Random) -> Mutation:
    """Copy a stage to `target` and do something to the copy.

    Args:
        stage (`Path`): A whole stage.
        others (`list[Path]`): Whole stages of the same and of other runs.
        target (`Path`): Folder to make.
        generator (`random.Random`): Decides what is done.
    """
    shutil.copytree(stage, target)
    kind = generator.choices((_damage, _swap, _forge, _forge_anything, _plant), (8, 3, 6, 5, 1))[0]
    return kind(target, generator.choice(others), generator)


def _damage(stage: Path, _, generator: random.Random) -> Mutation:
    """Change the bytes of one file."""
    name = _pick_file(stage, generator)
    how = generator.choice(sorted(DAMAGES))
    before = (stage / name).read_bytes()
    after = DAMAGES[how](before, generator)
    if after is None:
        (stage / name).unlink()
    else:
        (stage / name).write_bytes(after)
    if name in UNREAD or after == before:
        return Mutation(f"{how} {name}", "same")
    if name == "digests.json":
        return Mutation(f"{how} {name}", "same" if after is None else "refused or same")
    return Mutation(f"{how} {name}", "refused")


def _flip(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(content))
    filler = generator.choice((b"\0", b"\xff", b" "))
    return (
        content[:start] + (filler * generator.choice((1, 64, 4096)))[: len(content) - start] + content[start + 4096 :]
    )


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip bits of": _flip,
    "overwrite a part of": _overwrite,
    "truncate": lambda content, generator: content[: generator.randrange(len(content))],
    "cut the start of": lambda content, generator: content[generator.randrange(1, len(content)) :],
    "empty": lambda content, generator: b"",
    "lengthen": lambda content, generator: content + generator.randbytes(generator.choice((1, 8, 5000))),
    "double": lambda content, generator: content * 2,
    "replace by noise": lambda content, generator: generator.randbytes(len(content)),
    "replace by a Git LFS pointer": lambda content, generator: (
        b"version https://git-lfs.example/spec/v1\noid sha256:%s\nsize %d\n"
        % (hashlib.sha256(content).hexdigest().encode(), len(content))
    ),
    "delete": lambda content, generator: None,
}


def _pick_file(stage: Path, generator: random.Random) -> str:
    names = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
    return generator.choice([*names, CONFIG, WEIGHTS, HISTORY, CODES, MEMORY])


def _swap(stage: Path, other: Path, generator: random.Random) -> Mutation:
    """Replace a file or the memory by those of another stage, or exchange two files."""
    kind = generator.choice(("file", "file", "memory", "exchange", "resealed memory", "resealed history"))
    name = _pick_file(stage, generator)
    if kind == "file":
        if not (other / name).is_file():
            return Mutation("nothing", "same")
        before = (stage / name).read_bytes()
        shutil.copyfile(other / name, stage / name)
        is_same = name in UNREAD or before == (stage / name).read_bytes()
        return Mutation(f"{name} of {other.parent.name}/{other.name}", "same" if is_same else "refused")
    if kind == "exchange":
        first, second = stage / name, stage / _pick_file(stage, generator)
        contents = first.read_bytes(), second.read_bytes()
        first.write_bytes(contents[1])
        second.write_bytes(contents[0])
        is_same = contents[0] == contents[1] or {first.name, second.name} <= set(UNREAD)
        return Mutation(f"exchange {name} and {second.name}", "same" if is_same else "refused")
    if kind == "resealed history":
        shutil.copyfile(other / HISTORY, stage / HISTORY)
    else:
        shutil.rmtree(stage / "memory")
        shutil.copytree(other / "memory", stage / "memory")
    if "resealed" in kind:
        write_digests(stage)
    return Mutation(f"{kind} of {other.parent.name}/{other.name}", "refused")


def _plant(stage: Path, _, generator: random.Random) -> Mutation:
    """Add files that run code when they are unpickled or imported."""
    bomb = io.BytesIO()
    pickle.dump(_Bomb(str(stage / SENTINEL)), bomb)
    names = ("pytorch_model.bin", "training_args.bin", "memory/codec.pkl", "optimizer.pt", "memory/codes.pickle")
    name = generator.choice(names)
    (stage / name).write_bytes(bomb.getvalue())
    source = f"open({str(stage / SENTINEL)!r}, 'w').close()\n"
    (stage / "evil.py").write_text(source)
    if generator.random() < 0.5:
        (stage / WEIGHTS).unlink()
        if generator.random() < 0.5:
            write_digests(stage)
        return Mutation(f"{name} in the place of the weights", "refused")
    content = json.loads((stage / CONFIG).read_text())
    content["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil"}
    (stage / CONFIG).write_text(json.dumps(content))
    write_digests(stage)
    return Mutation(f"{name} and an auto_map to code", "any")


class _Bomb:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def _forge(stage: Path, _, generator: random.Random) -> Mutation:
    name, edit = generator.choice(FORGERIES)
    edit(stage)
    reseal(stage)
    return Mutation(f"forged {name}", "forged")


def _forge_anything(stage: Path, _, generator: random.Random) -> Mutation:
    """Set one value anywhere in a JSON file to something absurd, or change bytes, and rewrite the digests."""
    if generator.random() < 0.3:
        name = generator.choice((CONFIG, WEIGHTS, HISTORY, CODES, MEMORY))
        how = generator.choice(sorted(set(DAMAGES) - {"delete"}))
        (stage / name).write_bytes(DAMAGES[how](((stage / name).read_bytes()), generator))
        reseal(stage)
        return Mutation(f"{how} {name}, resealed", "any")
    name = generator.choice((CONFIG, MEMORY, HISTORY))
    content = json.loads((stage / name).read_text())
    where, path = content, []
    while True:
        keys = sorted(where) if isinstance(where, dict) else range(len(where))
        key = generator.choice(list(keys))
        path.append(str(key))
        if not (isinstance(where[key], dict | list) and where[key]) or generator.random() < 0.2:
            break
        where = where[key]
    what = generator.choice(("set", "set", "set", "delete", "add"))
    value = generator.choice(ABSURD)
    if what == "delete":
        del where[key]
    elif what == "add" and isinstance(where, dict):
        where[generator.choice(("extra", "to_dict", "forward", "num_labels", "__class__", "../x", ""))] = value
    else:
        where[key] = value
    (stage / name).write_text(json.dumps(content))
    reseal(stage)
    return Mutation(f"{what} {name}:{'.'.join(path)} {str(value)[:30]!r}", "any")
