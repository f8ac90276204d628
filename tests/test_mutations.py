"""Damaged and forged stages: one clear error or the exact right result; never a crash, a hang or a wrong load.

A sample runs by default, 2,000 stages and every forgery with `pytest tests/test_mutations.py --full`.
"""

import random
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PARTS
from forgeries import FORGERIES, reseal
from mutations import Mutation, fingerprints, make_run, mutate, verdict
from test_memory import images_of

from hf_wakesleep import LearnedCodec, RawCodec, TaskStream

SAMPLE, FULL = 96, 2_000  # mutated stages
MEGABYTES = 400  # that loading any of them may add to the memory of the process


@dataclass(frozen=True)
class Subject:
    """A stage to mutate, others of the same and of other runs, the stream, and what loading the stage gives."""

    stage: Path
    others: list[Path]
    stream: TaskStream
    original: dict[str, str | None]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Stages whose memories are coded by WebP, twice as often as by the learned codec, as it ships and fitted."""
    folder = tmp_path_factory.mktemp("runs")
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


def test_a_whole_stage_loads_in_every_way_and_again(subjects):
    for one in subjects[1:]:
        assert None not in one.original.values()
        assert fingerprints(one.stage, one.stream, auto=True) == one.original
    assert (subjects[3].stage / "memory" / "codec.safetensors").is_file()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_stage_is_refused_or_as_it_was(subjects, tmp_path, request, part):
    count = FULL if request.config.getoption("full") else SAMPLE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for number in range(part, count, PARTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = subjects[number // PARTS % len(subjects)]
        mutation = mutate(one.stage, one.others, folder / "task-02", random.Random(number))
        problem = verdict(mutation, folder / "task-02", one.stream, one.original, auto=number % 3 == 0)
        wrong += [f"{number}: {problem}"] if problem else []
        shutil.rmtree(folder)
    assert wrong == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.parametrize("part", range(PARTS))
def test_a_forged_stage_is_refused_or_as_it_was(subjects, tmp_path, request, part):
    step = PARTS if request.config.getoption("full") else 8 * PARTS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for number in range(part, len(FORGERIES), step):
        name, edit = FORGERIES[number]
        folder = tmp_path / str(number)
        one = subjects[number // step % len(subjects)]
        shutil.copytree(one.stage, folder / "task-02")
        edit(folder / "task-02")
        reseal(folder / "task-02")
        problem = verdict(Mutation(name, "forged"), folder / "task-02", one.stream, one.original, auto=number % 2 == 0)
        wrong += [f"{number}: {problem}"] if problem else []
        shutil.rmtree(folder)
    assert wrong == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
