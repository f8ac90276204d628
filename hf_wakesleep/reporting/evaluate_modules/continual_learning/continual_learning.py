"""Continual-learning metrics of an accuracy matrix, as a module of `evaluate`."""

import datasets
import evaluate

from .accuracy_matrix import summarize

DESCRIPTION = """
Average accuracy, average incremental accuracy, forgetting (Chaudhry et al. 2018), backward transfer (Lopez-Paz &
Ranzato 2017) and learning accuracy of a model that learned one task after another; with more inputs also pooled
accuracy and forward transfer.
"""

INPUTS = """
Args:
    accuracy_matrix (`list[list[float]]`): Row t holds the accuracy, 0 to 1, on tasks 0..t after training on task t.
    num_images (`list[int]`, *optional*): Evaluation images of each task; adds `pooled_accuracy`.
    before (`list[float]`, *optional*): Score on each task just before it was trained.
    untrained (`list[float]`, *optional*): Score on each task of the untrained model; with `before` it adds
        `forward_transfer`.

Returns:
    `dict[str, float]`: The metrics by name. Entries of the matrix that are NaN are left out of means; where the last
        row has one, `known_tasks` is the number of tasks that are left.

Examples:
    >>> metric = evaluate.load("hf_wakesleep/evaluate_modules/continual_learning")
    >>> metric.compute(accuracy_matrix=[[0.9], [0.7, 0.8]])["forgetting"]
    0.2
"""

CITATION = """
@inproceedings{chaudhry2018riemannian,
  title={Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence},
  author={Chaudhry, Arslan and Dokania, Puneet K. and Ajanthan, Thalaiyasingam and Torr, Philip H. S.},
  booktitle={ECCV}, year={2018}
}
@inproceedings{lopezpaz2017gradient,
  title={Gradient Episodic Memory for Continual Learning},
  author={Lopez-Paz, David and Ranzato, Marc'Aurelio},
  booktitle={NeurIPS}, year={2017}
}
"""


class ContinualLearning(evaluate.Metric):
    """Metrics of a triangular accuracy matrix; rows may be added one after each task."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            inputs_description=INPUTS,
            citation=CITATION,
            features=datasets.Features({"accuracy_matrix": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, accuracy_matrix, num_images=None, before=None, untrained=None):
        for task, row in enumerate(accuracy_matrix):
            if len(row) != task + 1:
                raise ValueError(
                    f"Row {task} of `accuracy_matrix` must hold {task + 1} accuracies, one for each task so far, got "
                    f"{len(row)}. Leave out tasks that are yet to come."
                )
        return summarize(accuracy_matrix, num_images, before, untrained)
