"""Two tasks of digits, learned by several processes."""

import faulthandler
import gc
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from conftest import FAST, digits_of
from forked import forkserver, send_output_to
from runs import STEP_ASLEEP, send_at
from transformers import TrainerCallback

STOPPED_AFTER = 3  # steps of a sleep
SHARDED = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "ViTLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


@dataclass(frozen=True)
class Ended:
    """How a group of processes ended."""

    exit_codes: list[int]
    output: str  # of all processes, one after the other


def launch(folder: Path, processes: int, *accidents: str, **args) -> Ended:
    """Let so many processes learn, or go on; when one of them fails, those that wait for it are ended, too.

    Args:
        folder (`Path`): Where they write.
        processes (`int`): How many.
        accidents (`str`): What happens to them, see `learn`.
        args: Training arguments.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [
        forkserver().Process(target=_work, args=(rank, processes, port, folder, accidents, args))
        for rank in range(processes)
    ]
    for process in group:
        process.start()
    wait([process.sentinel for process in group])
    deadline = time.monotonic() + 30  # for the others to say the same
    while any(process.is_alive() for process in group):
        time.sleep(0.1)
        if any(process.exitcode for process in group) and time.monotonic() > deadline:
            for process in group:
                process.kill()
    logs = [(folder / f"rank-{rank}.log").read_text() for rank in range(processes)]
    return Ended([process.exitcode for process in group], "".join(logs))


def run(folder: Path, processes: int, *accidents: str, **args) -> list[dict]:
    """Return what each of so many processes saw of two tasks of digits."""
    ended = launch(folder, processes, *accidents, **args)
    assert not any(ended.exit_codes), "\n".join(
        f"process {rank} ended with {code}: {(folder / f'rank-{rank}.log').read_text()[-2500:]}"
        for rank, code in enumerate(ended.exit_codes)
    )
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]


def _work(rank: int, processes: int, port: int, folder: Path, accidents: tuple[str, ...], args: dict) -> None:
    gc.freeze()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if processes > 1:
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if "shard" in accidents:
        os.environ.update(SHARDED)
    send_output_to(folder / f"rank-{rank}.log", 1, 2)
    faulthandler.enable()
    learn(folder, accidents, args)


def learn(folder: Path, accidents: tuple[str, ...], changes: dict) -> None:
    """Learn two tasks of digits in this process of the group, and report what came of it.

    Args:
        folder (`Path`): Where to write.
        accidents (`tuple[str, ...]`): `"even"` (no accident: all batches are full), `"shard"` (the model is spread
            over processes), `"norms"` (the backbone has running statistics), `"leave"`, `"break"`, `"stop"` and
            `"noise"`, which befall one of the processes.
        changes (`dict`): Training arguments.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from datasets import DatasetDict
    from transformers import ResNetConfig, ViTConfig, set_seed

    from hf_wakesleep import (
        ClassIncrementalStream,
        ContinualTrainer,
        ContinualTrainingArguments,
        WakeSleepConfig,
        WakeSleepForImageClassification,
    )

    is_even = "even" in accidents
    data = digits_of(range(4), 64 if is_even else 47)
    data = data.train_test_split(test_size=0.25, seed=0, stratify_by_column="label" if is_even else None)
    settings = {**FAST, "use_cpu": True, "codec": "raw", "memory_budget": "30KB", "per_device_eval_batch_size": 7}
    args = ContinualTrainingArguments(str(folder), **{**settings, **changes})
    if "shard" in accidents:  # accelerate shards on accelerators only: let it take the CPU for one
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    set_seed(0)
    vit = ViTConfig(
        image_size=8, patch_size=2, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    backbone = {"backbone_config": resnet} if "norms" in accidents else {"backbone_config": vit, "pooling": "mean"}
    model = WakeSleepForImageClassification(WakeSleepConfig(**backbone, image_size=8))
    stream = ClassIncrementalStream(DatasetDict(data), num_tasks=2, seed=1)
    trainer = ContinualTrainer(model=model, args=args, stream=stream)
    _befall(trainer, accidents)
    trainer.train(resume_from_checkpoint=True)
    if "shard" in accidents:
        assert trainer.accelerator.is_fsdp2
    given = {"set": data["test"], "stream": data["test"].to_iterable_dataset()}
    accuracies = {name: trainer.evaluate(images)["eval_accuracy"] for name, images in given.items()}
    hidden = trainer.predict(data["test"].remove_columns("label")).predictions.shape
    rows = [row["image"] if 7 <= number < 14 else row for number, row in enumerate(data["test"])]  # the second batch
    try:
        partly = str(trainer.evaluate(rows))
    except ValueError as error:
        partly = str(error)
    report = {"world": args.world_size, **_describe(trainer), **accuracies, "hidden": hidden, "partly": partly}
    (folder / f"rank-{args.process_index}.json").write_text(json.dumps(report))
    trainer.accelerator.end_training()


class _Leave(TrainerCallback):
    """Changes a weight at the end of wake, on each process by another number."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        model.head.classifier.bias.data.add_(args.process_index)


def _befall(trainer, accidents: tuple[str, ...]) -> None:
    rank = trainer.args.process_index
    if "leave" in accidents:  # one process changes a weight for itself
        trainer.add_callback(_Leave())
    if "break" in accidents:  # one process has an infinite loss
        watch = trainer.check.watch
        trainer.check.watch = lambda loss: watch(loss / (rank or trainer.state.global_step != 3))
    if "noise" in accidents and rank == 1:  # one process sums features to other bits
        from hf_wakesleep.model.head_wakesleep import LinearDiscriminant

        update = LinearDiscriminant.update
        LinearDiscriminant.update = lambda lda, features, labels: update(lda, features * (1 + 1e-6), labels)
    if "stop" in accidents and rank == 1:  # a signal reaches one process only
        module, name = STEP_ASLEEP
        setattr(module, name, send_at(STOPPED_AFTER + 1, getattr(module, name)))


def _describe(trainer) -> dict:
    digest = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    images, labels = trainer.memory.read(range(len(trainer.memory)))
    # in any order: herding follows the features to the last bit
    pairs = sorted((label.item(), image.numpy().tobytes()) for image, label in zip(images, labels, strict=True))
    return {
        "weights": digest.hexdigest(),
        "memory": hashlib.sha256(repr(pairs).encode()).hexdigest(),
        "codes": len(trainer.memory),
        "counts": trainer.model.head.lda.counts.tolist(),
        "matrix": trainer.history.accuracy_matrix,
    }
