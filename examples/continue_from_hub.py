"""Teach a stage from the Hub its next task, on a machine that has never seen the images of the earlier ones.

    accelerate launch examples/continue_from_hub.py me/digits --revision task-03 --output_dir out/next

builds the stream of `train_cil.py` (same data, number of tasks and seed) and learns the first task that the stage does
not know. A folder with a stage does as well as a repository; `--push_to_hub true --hub_model_id me/digits` publishes.
"""

from train_cil import StreamArguments, TrainingArguments, load_images
from transformers import HfArgumentParser

from hf_wakesleep import ClassIncrementalStream, ContinualTrainer, TaskStream, WakeSleepForImageClassification


def main() -> None:
    """Load the stage, learn one task, and print what came of it."""
    parser = HfArgumentParser([StreamArguments, TrainingArguments])
    parser.add_argument("stage", help="Repository on the Hub, or folder of a stage.")
    parser.add_argument("--revision", help="Tag, branch or commit of the repository, such as 'task-03'.")
    stream_args, args, where = parser.parse_args_into_dataclasses()
    model = WakeSleepForImageClassification.from_pretrained(where.stage, revision=where.revision)
    stream = ClassIncrementalStream(
        load_images(stream_args),
        num_tasks=stream_args.num_tasks or (None if stream_args.classes_per_task else 5),
        classes_per_task=stream_args.classes_per_task,
        seed=args.seed,
    )
    new = [task for task in stream if not set(task.classes) <= set(model.config.classes)]
    trainer = ContinualTrainer(model=model, args=args, stream=TaskStream(new[:1], stream.protocol))
    trainer.train()
    if trainer.is_world_process_zero():
        print(f"\n{trainer.history.table()}")
    trainer.accelerator.end_training()  # leaves the group of processes, if there is one


if __name__ == "__main__":
    main()
