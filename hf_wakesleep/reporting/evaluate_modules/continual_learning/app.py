"""The page of this module as a Space: what `compute` takes, as JSON, and what it returns."""

import json
from pathlib import Path

import evaluate
import gradio

FOLDER = Path(__file__).parent
EXAMPLE = '{"accuracy_matrix": [[0.9], [0.7, 0.8], [0.5, 0.6, 0.9]], "num_images": [10, 10, 80]}'

metric = evaluate.load(str(FOLDER / "continual_learning.py"))


def compute(arguments: str) -> dict[str, float]:
    """Return the metrics of what was typed in."""
    try:
        return metric.compute(**json.loads(arguments))
    except (TypeError, ValueError) as error:
        raise gradio.Error(str(error)) from error


page = gradio.Interface(
    compute,
    gradio.Code(EXAMPLE, language="json", label="Arguments of compute"),
    gradio.JSON(label="Metrics"),
    title="Metric: continual learning",
    article=(FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2],
)

if __name__ == "__main__":
    page.launch()
