"""Damaged and forged stages: one clear error or the exact right result; never a crash, a hang or a wrong load.

A sample runs by default, 2,000 stages and every forgery with `pytest tests/end_to_end/test_mutations.py --full`.
"""

import resource
import shutil
from dataclasses import replace

import pytest
import torture
from conftest import PARTS
from forgeries import FORGERIES, reseal
from mutations import Mutation, fingerprints, make_subjects, mutated, verdict

pytestmark = pytest.mark.slow

SAMPLE, FULL = 96, 2_000  # mutated stages
MEGABYTES = 400  # that loading any of them may add to the memory of the process


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return make_subjects(tmp_path_factory.mktemp("runs"))


def test_a_whole_stage_loads_in_every_way_and_again(subjects):
    for one in subjects[1:]:
        assert None not in one.original.values()
        assert fingerprints(one.stage, one.stream, auto=True) == one.original
    assert (subjects[3].stage / "memory" / "codec.safetensors").is_file()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_stage_is_refused_or_as_it_was(subjects, tmp_path, request, part):
    count = FULL if request.config.getoption("full") else SAMPLE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = range(part, count, PARTS)
    wrong = [problem for number in numbers if (problem := mutated(subjects, number, tmp_path))]
    assert wrong == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


def test_torture_counts_stages_that_load_otherwise(subjects, tmp_path):
    assert torture.mutate_stages(subjects, 4, tmp_path).failures == 0
    wrong = [replace(one, original=dict.fromkeys(one.original, "another")) for one in subjects]
    row = torture.mutate_stages(wrong, 12, tmp_path)
    assert row.times == 12
    assert row.failures > 0


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
