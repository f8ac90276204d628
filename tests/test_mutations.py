"""Damaged and forged stages: one clear error or the exact right result; never a crash, a hang or a wrong load.

A sample runs by default, 2,000 stages and every forgery with `pytest tests/test_mutations.py --full`.
"""

import random
import resource
import shutil

import pytest
from conftest import PARTS
from forgeries import FORGERIES, reseal
from mutations import Mutation, fingerprints, make_run, mutate, verdict

SAMPLE, FULL = 96, 2_000  # mutated stages
MEGABYTES = 400  # that loading any of them may add to the memory of the process


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A stage, others of the same and of other runs, the stream, and what loading the first stage gives."""
    folder = tmp_path_factory.mktemp("runs")
    stream = make_run(folder / "a", 0, range(3))
    make_run(folder / "b", 1, range(3, 6))
    make_run(folder / "c", 0, range(3), codec="raw")
    stage = folder / "a" / "task-02"
    others = [folder / "a" / "task-01", folder / "b" / "task-02", folder / "c" / "task-02"]
    return stage, others, stream, fingerprints(stage, stream)


def test_a_whole_stage_loads_in_every_way_and_again(runs):
    stage, _, stream, original = runs
    assert None not in original.values()
    assert fingerprints(stage, stream, auto=True) == original


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_stage_is_refused_or_as_it_was(runs, tmp_path, request, part):
    stage, others, stream, original = runs
    count = FULL if request.config.getoption("full") else SAMPLE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for number in range(part, count, PARTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        mutation = mutate(stage, others, folder / "task-02", random.Random(number))
        problem = verdict(mutation, folder / "task-02", stream, original, auto=number % 3 == 0)
        wrong += [f"{number}: {problem}"] if problem else []
        shutil.rmtree(folder)
    assert wrong == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.parametrize("part", range(PARTS))
def test_a_forged_stage_is_refused_or_as_it_was(runs, tmp_path, request, part):
    stage, _, stream, original = runs
    step = PARTS if request.config.getoption("full") else 8 * PARTS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for number in range(part, len(FORGERIES), step):
        name, edit = FORGERIES[number]
        folder = tmp_path / str(number)
        shutil.copytree(stage, folder / "task-02")
        edit(folder / "task-02")
        reseal(folder / "task-02")
        problem = verdict(Mutation(name, "forged"), folder / "task-02", stream, original, auto=number % 2 == 0)
        wrong += [f"{number}: {problem}"] if problem else []
        shutil.rmtree(folder)
    assert wrong == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
