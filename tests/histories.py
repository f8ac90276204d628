"""Histories of runs that never were."""

import math

from hf_wakesleep import History
from hf_wakesleep.reporting.history import TaskRecord


def make_history(rows=((0.9,), (0.7, 0.8), (0.5, 0.6, 0.9))) -> History:
    records = [
        TaskRecord(
            name=f"task-{number:02d}",
            classes=[f"class {number}"],
            new_classes=[f"class {number}"],
            num_train_images=100,
            num_eval_images=10 * number,
            accuracy=list(row),
            before_accuracy=math.nan if number == 1 else 0.6,
            untrained_accuracy=math.nan if number == 1 else 0.5,
            memory_bytes={"codes": 10, "index": 5, "codec": 0, "statistics": 5, "masks": 0, "total": 20},
            num_codes=number,
            wake_seconds=1.5,
            wake_images=100,
        )
        for number, row in enumerate(rows, start=1)
    ]
    return History({"seed": 7}, {"task-02": 0.5}, records)
