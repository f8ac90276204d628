"""Classes taught live: seconds of teaching, and accuracy before and after a sleep.

    OMP_NUM_THREADS=1 python examples/benchmarks/live.py --data_dir DATA --backbone PATH_OR_HUB_NAME

teaches a `Learner` 20 classes of Caltech-101 with 30 images each, then 5 classes with 5 images each, one by one, lets
it sleep, and prints accuracy on test images of both.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from datasets import load_dataset

from hf_wakesleep import Learner

OLD, NEW = (20, 30), (5, 5)  # classes, and images of each


def main() -> None:
    """Teach, measure, sleep, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="holds caltech101/train.parquet and test.parquet")
    parser.add_argument("--backbone", required=True, help="pretrained ViT, on the Hub or in a folder")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=7, help="chooses the classes")
    args = parser.parse_args()
    files = {split: str(args.data_dir / "caltech101" / f"{split}.parquet") for split in ("train", "test")}
    images = load_dataset("parquet", data_files=files)
    labels = {split: np.asarray(part["label"]) for split, part in images.items()}
    names = images["train"].features["label"].names
    many = [label for label in range(len(names)) if (labels["train"] == label).sum() >= OLD[1]]
    chosen = np.random.default_rng(args.seed).permutation(many)[: OLD[0] + NEW[0]].tolist()
    old, new = chosen[: OLD[0]], chosen[OLD[0] :]

    def pictures(split: str, label: int, most: int | None = None) -> list:
        return images[split][np.flatnonzero(labels[split] == label)[:most].tolist()]["image"]

    def accuracy(learner: Learner, classes: list[int]) -> float:
        answers = [
            answer["label"] == names[label]
            for label in classes
            for (answer,) in learner.predict(pictures("test", label), top_k=1)
        ]
        return 100 * np.mean(answers)

    learner = Learner.from_backbone(args.backbone, image_size=args.image_size)
    start = time.perf_counter()
    learner.teach({names[label]: pictures("train", label, OLD[1]) for label in old})
    print(f"{len(old)} classes of {OLD[1]} images: {time.perf_counter() - start:.1f} s")
    seconds = []
    for label in new:
        few = pictures("train", label, NEW[1])
        start = time.perf_counter()
        learner.teach(few, names[label])
        seconds.append(time.perf_counter() - start)
    print(f"a class of {NEW[1]} images: {np.median(seconds):.2f} s (median of {len(seconds)})")
    print("\n| | old classes | new classes |\n|---|---|---|")
    print(f"| taught | {accuracy(learner, old):.1f} | {accuracy(learner, new):.1f} |", flush=True)
    start = time.perf_counter()
    learner.sleep()
    seconds = time.perf_counter() - start
    print(f"| after a sleep of {seconds:.0f} s | {accuracy(learner, old):.1f} | {accuracy(learner, new):.1f} |")


if __name__ == "__main__":
    main()
