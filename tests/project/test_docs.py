"""The documentation: no argument is missing from it, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
from paths import ROOT

from hf_wakesleep import ContinualTrainingArguments
from hf_wakesleep.learning.argument_checks import FIXED, REFUSED_OPTIMIZERS
from hf_wakesleep.learning.classifier_trainer import REFUSED

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("**/README.md")])
ARGUMENTS = ROOT / "docs" / "arguments.md"


def rows(heading: str) -> dict[str, str]:
    """Return the first cell and the second of every row of the tables under a heading, without their code marks."""
    (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^## |\Z)", ARGUMENTS.read_text(), re.DOTALL | re.MULTILINE)
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))


def shown(value) -> str:
    """Return how a default stands in the documentation."""
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def test_every_argument_is_documented_with_its_default():
    own = ContinualTrainingArguments.__annotations__
    defaults = {name: ContinualTrainingArguments.__dataclass_fields__[name].default for name in own}
    assert rows("Own arguments") == {name: shown(default) for name, default in defaults.items()}


def test_every_argument_that_is_refused_is_documented_with_the_value_that_it_must_keep():
    documented = rows("Refused")
    assert documented.keys() == FIXED.keys()
    for name, (values, _) in FIXED.items():
        assert documented[name].startswith(shown(values[0])), name
    text = ARGUMENTS.read_text()
    assert [name for name in REFUSED_OPTIMIZERS if f"`{name}`" not in text] == []
    assert rows("Arguments of `Trainer`").keys() == REFUSED.keys()


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link
