"""Malformed datasets and arguments: one clear error that names what is wrong, or the exact right result."""

import pytest
from conftest import PARTS
from malformed import cases, verdict

pytestmark = pytest.mark.slow


def test_there_are_at_least_five_hundred_cases(tmp_path):
    assert len(cases(tmp_path)) >= 500


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_malformed_is_refused_by_name_or_read_right(tmp_path, part):
    wrong = [problem for case in cases(tmp_path)[part::PARTS] if (problem := verdict(case))]
    assert wrong == []
