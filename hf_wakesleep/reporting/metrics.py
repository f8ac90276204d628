"""Metrics of an accuracy matrix: the functions of the module of `evaluate` that ships with the package."""

from .evaluate_modules.continual_learning.accuracy_matrix import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    gap_to_joint,
    known_tasks,
    learning_accuracy,
    pooled_accuracy,
    summarize,
)

__all__ = [
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "gap_to_joint",
    "known_tasks",
    "learning_accuracy",
    "pooled_accuracy",
    "summarize",
]
