"""Damaged and forged stages: one clear error or the exact right result; never a crash, a hang or a wrong load.

A sample runs by default, 2,000 stages and every forgery with `pytest tests/end_to_end/test_mutations.py --full`.
"""

import resource
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torture
from conftest import PARTS
from forgeries import FORGERIES, reseal
from mutations import Mutation, fingerprints, make_subjects, mutated, verdict

pytestmark = pytest.mark.slow

SAMPLE, FULL = 96, 2_000  # mutated stages
MEGABYTES = 400  # that loading any of them may add to the memory of a process
PATIENCE = 3600  # seconds; what hangs would else go on for ever


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return make_subjects(tmp_path_factory.mktemp("runs"))


def problems(trials):
    """Return what is wrong with trials in a process of their own, too much memory among it."""

    def make():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wrong = [problem for trial in trials if (problem := trial())]
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        return wrong + [f"{grown:.0f} MB"] * (grown >= MEGABYTES)

    return torture.isolated(make, PATIENCE)


def test_a_whole_stage_loads_in_every_way_and_again(subjects):
    for one in subjects[1:]:
        assert None not in one.original.values()
        assert fingerprints(one.stage, one.stream, auto=True) == one.original
    assert (subjects[3].stage / "memory" / "codec.safetensors").is_file()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_stage_is_refused_or_as_it_was(subjects, tmp_path, request, part):
    count = FULL if request.config.getoption("full") else SAMPLE
    trials = [partial(mutated, subjects, number, tmp_path) for number in range(part, count, PARTS)]
    assert problems(trials) == []


def test_torture_counts_stages_that_load_otherwise(subjects, tmp_path):
    assert torture.mutate_stages(subjects, 4, tmp_path).failures == 0
    wrong = [replace(one, original=dict.fromkeys(one.original, "another")) for one in subjects]
    row = torture.mutate_stages(wrong, 12, tmp_path)
    assert row.times == 12
    assert row.failures > 0


def forged(one, number, folder):
    """Load a stage with one of the forgeries in some way, and return what is wrong with what came of it."""
    name, edit = FORGERIES[number]
    shutil.copytree(one.stage, folder / "task-02")
    edit(folder / "task-02")
    reseal(folder / "task-02")
    problem = verdict(Mutation(name, "forged"), folder / "task-02", one.stream, one.original, auto=number % 2 == 0)
    shutil.rmtree(folder)
    return problem and f"{number}: {problem}"


@pytest.mark.parametrize("part", range(PARTS))
def test_a_forged_stage_is_refused_or_as_it_was(subjects, tmp_path, request, part):
    step = PARTS if request.config.getoption("full") else 8 * PARTS
    trials = [
        partial(forged, subjects[number // step % len(subjects)], number, tmp_path / str(number))
        for number in range(part, len(FORGERIES), step)
    ]
    assert problems(trials) == []
