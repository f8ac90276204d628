"""Teach an image classifier one task after another (class-incremental learning).

    accelerate launch examples/train_cil.py

learns the 1,797 handwritten digits that scikit-learn ships, 5 tasks of 2 classes, with a small ViT from scratch, on a
CPU. `--method finetune`, `replay` or `joint` runs a baseline with the same code; `--help` lists everything else.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import one_line
from image_data import DataArguments, load_images
from transformers import HfArgumentParser, ViTConfig, set_seed

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    ContinualTrainingArguments,
    WakeSleepConfig,
    WakeSleepForImageClassification,
)

# Other defaults for the arguments below. Baselines see about as many images awake as wakesleep does awake and asleep.
# The recipe is not for them; they keep the rate that suits them on digits.
CLASSIFIER_ONLY = {
    "wake_plasticity": "full",
    "sleep_steps": 0,
    "lda_weight": 0.0,
    "learning_rate": 2e-3,
}
METHODS = {
    "wakesleep": {},
    "finetune": {**CLASSIFIER_ONLY, "memory_budget": "0", "num_train_epochs": 45},
    "replay": {**CLASSIFIER_ONLY, "codec": "raw", "wake_replay": True, "num_train_epochs": 25},
    "joint": {**CLASSIFIER_ONLY, "memory_budget": "0", "num_train_epochs": 45},
    "lda": {"sleep_steps": 0, "lda_weight": 1.0, "memory_budget": "0", "num_train_epochs": 0},
}


@dataclass
class StreamArguments(DataArguments):
    """What to learn, in which order, and with which backbone."""

    method: str = field(
        default="wakesleep",
        metadata={
            "help": "'wakesleep', or a baseline with other defaults for the arguments below: 'finetune' (no memory, "
            "no sleep), 'replay' (raw images mixed into wake), 'joint' (all tasks at once), 'lda' (no training).",
            "choices": sorted(METHODS),
        },
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
    """ContinualTrainingArguments with a place to write to, and the learned codec for digits."""

    output_dir: str = field(default="out/digits", metadata={"help": "Where stages, history and checkpoints go."})
    codec: str | None = field(
        default=None,
        metadata={
            "help": "How memories are coded: 'learned' (by default for digits, or if there is a budget), 'webp' "
            "(else), or 'raw'."
        },
    )
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints inside a task: 'no', 'steps' or 'epoch'."})


def build_stream(args: StreamArguments, seed: int) -> ClassIncrementalStream:
    """Return the stream that the arguments name."""
    images, num_tasks = load_images(args), args.num_tasks
    if num_tasks is None and args.classes_per_task is None:
        num_tasks = 5 if args.is_digits else 1
    return ClassIncrementalStream(
        images, num_tasks=num_tasks, classes_per_task=args.classes_per_task, seed=seed, **args.columns
    )


def build_model(args: StreamArguments) -> WakeSleepForImageClassification:
    """Return a model without classes: around a pretrained backbone, or a small ViT with 4 x 4 patches from scratch."""
    if args.backbone:
        return WakeSleepForImageClassification.from_backbone(
            args.backbone, image_size=args.image_size, config_kwargs={"classifier": args.classifier}
        )
    image_size = 8 if args.image_size is None else args.image_size
    patch_size = max(1, image_size // 4)
    if image_size % patch_size:
        raise ValueError(f"`--image_size` must be a multiple of 4 without `--backbone`, got {image_size}.")
    vit = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
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
    parser = HfArgumentParser([StreamArguments, TrainingArguments], allow_abbrev=False)
    if "--help" not in sys.argv and "-h" not in sys.argv:
        given = parser.parse_known_args()[0]
        is_embedded = not (given.image_folder or given.dataset_name or given.train_file)
        parser.set_defaults(**{**({"codec": "learned"} if is_embedded else {}), **METHODS[given.method]})
    return parser.parse_args_into_dataclasses()


def resume_point(args: TrainingArguments) -> str | bool | None:
    """Return what `--resume_from_checkpoint` means: a truth value, or the path of a stage or checkpoint."""
    given = args.resume_from_checkpoint
    return {"true": True, "false": False}.get(str(given).lower(), given)


def main() -> None:
    """Build stream, model and trainer, learn, and print what came of it."""
    stream_args, args = parse_arguments()
    stream = build_stream(stream_args, args.seed)
    if stream_args.method == "joint":
        stream = stream.joint()
    set_seed(args.seed)
    model = build_model(stream_args)
    trainer = ContinualTrainer(model=model, args=args, stream=stream)
    trainer.train(resume_from_checkpoint=resume_point(args))
    if trainer.is_world_process_zero():
        print(
            f"\n{trainer.history.table()}\n\n{Path(args.output_dir).resolve()}: history.json, history.png and stages"
        )
    trainer.accelerator.end_training()  # leaves the group of processes, if there is one


if __name__ == "__main__":
    one_line.run(main)
