"""Teach an image classifier one task after another (class-incremental learning).

    accelerate launch examples/train_cil.py

learns the 1,797 handwritten digits that scikit-learn ships, 5 tasks of 2 classes, with a small ViT from scratch, on a
CPU. `--method finetune`, `replay` or `joint` runs a baseline with the same code; `--help` lists everything else.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from transformers import HfArgumentParser, ViTConfig, set_seed

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    ContinualTrainingArguments,
    WakeSleepConfig,
    WakeSleepForImageClassification,
)

# Other defaults for the arguments below. Baselines see about as many images awake as wakesleep does awake and asleep.
CLASSIFIER_ONLY = {"wake_plasticity": "full", "head_init": "random", "sleep_steps": 0, "recall_weight": 0.0}
METHODS = {
    "wakesleep": {},
    "finetune": {**CLASSIFIER_ONLY, "memory_budget": "0", "num_train_epochs": 45},
    "replay": {**CLASSIFIER_ONLY, "codec": "raw", "wake_replay": True, "num_train_epochs": 25},
    "joint": {**CLASSIFIER_ONLY, "memory_budget": "0", "num_train_epochs": 45},
    "recall": {"sleep_steps": 0, "recall_weight": 1.0, "memory_budget": "0", "num_train_epochs": 0},
}


@dataclass
class StreamArguments:
    """What to learn, in which order, and with which backbone."""

    method: str = field(
        default="wakesleep",
        metadata={
            "help": "'wakesleep', or a baseline with other defaults for the arguments below: 'finetune' (no memory, "
            "no sleep), 'replay' (raw images mixed into wake), 'joint' (all tasks at once), 'recall' (no training).",
            "choices": sorted(METHODS),
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub. Default: scikit-learn's digits."}
    )
    train_file: str | None = field(default=None, metadata={"help": "Parquet file of training images."})
    test_file: str | None = field(default=None, metadata={"help": "Parquet file of test images."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder with one subfolder of images per class."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images, if not the only one."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels, if not the only one."})
    num_tasks: int | None = field(default=None, metadata={"help": "Number of tasks. Default: 5."})
    classes_per_task: list[int] | None = field(
        default=None, metadata={"help": "Number of classes of each task, instead of --num_tasks."}
    )
    backbone: str | None = field(
        default=None,
        metadata={"help": "Pretrained ViT, on the Hub or in a folder. Default: a small one from scratch."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the model's input in pixels. Default: the backbone's, 8 without one."}
    )
    classifier: str = field(default="linear", metadata={"help": "'linear' or 'cosine'."})


@dataclass
class TrainingArguments(ContinualTrainingArguments):
    """ContinualTrainingArguments with the defaults of a small ViT from scratch."""

    output_dir: str = field(default="out/digits", metadata={"help": "Where stages, history and checkpoints go."})
    codec: str | None = field(
        default="learned", metadata={"help": "How memories are coded: 'learned', 'webp' or 'raw'."}
    )
    first_wake_plasticity: str | None = field(
        default="full", metadata={"help": "What the wake of the first task trains; 'head' for a pretrained backbone."}
    )
    wake_plasticity: str = field(
        default="head", metadata={"help": "What other wakes train: 'full', 'head' or 'lora'."}
    )
    num_train_epochs: float = field(default=1, metadata={"help": "Epochs of the wake of each task."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of wake."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images in a batch of wake."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images in a batch without gradient."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate in wake."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up of wake: steps, or a share below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, awake and asleep."})
    backbone_learning_rate_ratio: float = field(
        default=1.0,
        metadata={"help": "Learning rate of the backbone over that of the head; 0.05 for a pretrained one."},
    )
    sleep_steps: int = field(default=400, metadata={"help": "Optimizer steps of the sleep after each task."})
    sleep_batch_size: int = field(default=32, metadata={"help": "Memories in a batch of sleep."})
    sleep_learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of sleep."})
    rem_share: float = field(default=0.3, metadata={"help": "Share of sleep in which memories are recombined."})
    sleep_cycles: int = field(default=10, metadata={"help": "NREM-REM cycles of a sleep."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints inside a task: 'no', 'steps' or 'epoch'."})


def load_digits() -> Dataset:
    """Return scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, 10 classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in digits.target_names])})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def load_images(args: StreamArguments):
    """Return the dataset that the arguments name."""
    if args.dataset_name:
        return load_dataset(args.dataset_name)
    if args.image_folder:
        return load_dataset("imagefolder", data_dir=args.image_folder)
    if args.test_file and not args.train_file:
        raise ValueError("`--test_file` goes with `--train_file`, which is missing.")
    if args.train_file:
        files = {"train": args.train_file} | ({"test": args.test_file} if args.test_file else {})
        return load_dataset("parquet", data_files=files)
    return load_digits()


def build_model(args: StreamArguments) -> WakeSleepForImageClassification:
    """Return a model without classes: around a pretrained backbone, or a small ViT with 4 x 4 patches from scratch."""
    if args.backbone:
        return WakeSleepForImageClassification.from_backbone(
            args.backbone, image_size=args.image_size, config_kwargs={"classifier": args.classifier}
        )
    image_size = args.image_size or 8
    vit = ViTConfig(
        image_size=image_size,
        patch_size=max(1, image_size // 4),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
    )
    config = WakeSleepConfig(backbone_config=vit, pooling="mean", image_size=image_size, classifier=args.classifier)
    return WakeSleepForImageClassification(config)


def parse_arguments() -> tuple[StreamArguments, TrainingArguments]:
    """Return the arguments; the method sets defaults, which the command line overrides."""
    parser = HfArgumentParser([StreamArguments, TrainingArguments])
    if "--help" not in sys.argv and "-h" not in sys.argv:
        method = parser.parse_known_args()[0].method
        parser.set_defaults(**METHODS[method])
    return parser.parse_args_into_dataclasses()


def main() -> None:
    """Build stream, model and trainer, learn, and print what came of it."""
    stream_args, args = parse_arguments()
    num_tasks = stream_args.num_tasks or (None if stream_args.classes_per_task else 5)
    stream = ClassIncrementalStream(
        load_images(stream_args),
        num_tasks=num_tasks,
        classes_per_task=stream_args.classes_per_task,
        seed=args.seed,
        image_column=stream_args.image_column,
        label_column=stream_args.label_column,
    )
    if stream_args.method == "joint":
        stream = stream.joint()
    set_seed(args.seed)
    model = build_model(stream_args)
    trainer = ContinualTrainer(model=model, args=args, stream=stream)
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint={"true": True, "false": False}.get(str(resume).lower(), resume))
    if trainer.is_world_process_zero():
        print(
            f"\n{trainer.history.table()}\n\n{Path(args.output_dir).resolve()}: history.json, history.png and stages"
        )
    trainer.accelerator.end_training()  # leaves the group of processes, if there is one


if __name__ == "__main__":
    main()
