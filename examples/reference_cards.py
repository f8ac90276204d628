"""Write the cards of a finished run, one per stage, with the facts they were rendered from.

    python examples/reference_cards.py out/digits model_cards/digits

is how `model_cards/` was made. Takes seconds.
"""

import json
import sys
from pathlib import Path

from hf_wakesleep import (
    History,
    SemiParametricMemory,
    WakeSleepForImageClassification,
    collect_facts,
    render_model_card,
)


def main(output_dir: Path, cards: Path) -> None:
    """Write `task-01.md`, `task-01.json`, ... for every stage in an output folder."""
    cards.mkdir(parents=True, exist_ok=True)
    for stage in sorted(output_dir.glob("task-*")):
        model = WakeSleepForImageClassification.from_pretrained(stage)
        memory = SemiParametricMemory.from_pretrained(str(stage)) if (stage / "memory").is_dir() else None
        facts = collect_facts(model, History.load(stage), memory)
        (cards / f"{stage.name}.json").write_text(json.dumps(facts.to_dict(), indent=1) + "\n", encoding="utf-8")
        (cards / f"{stage.name}.md").write_text(render_model_card(facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
