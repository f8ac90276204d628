"""Resume: the state that a run starts with, and the stage and checkpoint that it resumes from."""

from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..codecs.base import Codec
from ..codecs.registry import DEFAULT_CODEC, make_codec
from ..data.streams import TaskStream
from ..memory.memory import SemiParametricMemory
from ..model.configuration_wakesleep import WakeSleepConfig
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import HISTORY_NAME, History
from ..stages.checkpoint import CHECKPOINTS_FOLDER, checkpoints_of, find_resume_point
from ..stages.ingest import drop_ingest
from ..stages.protocol import check_same_run, is_same_run, tasks_of
from ..stages.stage import find_stages, load_stage_state, stage_folder, stage_name, stage_number
from .arguments import ContinualTrainingArguments
from .distributed import check_equal
from .settings import check_same_settings, different_settings


def initial_state(
    model: WakeSleepForImageClassification, args: ContinualTrainingArguments, codec: Codec | None = None
) -> tuple[History, SemiParametricMemory | None]:
    """Return history and memory to start with: new ones for a new model, else those of the stage it was loaded from.

    Args:
        model ([`WakeSleepForImageClassification`]): A model without classes, or one from `from_pretrained`.
        args ([`ContinualTrainingArguments`]): `codec`, `codec_quality` and `memory_budget` of a new memory.
        codec ([`Codec`], *optional*): The codec of a new memory, instead of what the arguments say.

    Raises:
        TypeError: If `model` is of another type.
        ValueError: If the model knows classes, but there is no history where it was loaded from, or the files there
            are damaged or of different stages.
    """
    if not isinstance(model, PreTrainedModel) or model.config.model_type != WakeSleepConfig.model_type:
        raise TypeError(f"Expected a WakeSleepForImageClassification, got {type(model).__name__}.")
    if not model.config.classes:
        if codec is None:
            settings = {} if args.codec_quality is None else {"quality": args.codec_quality}
            codec = make_codec(args.codec or ("learned" if args.memory_bytes else DEFAULT_CODEC), **settings)
        return History(), None if args.memory_bytes == 0 else SemiParametricMemory(codec, args.memory_bytes)
    folder = stage_folder(model)
    if not (folder / HISTORY_NAME).is_file():
        raise ValueError(
            f"The model knows {len(model.config.classes)} classes, but there is no {HISTORY_NAME} in "
            f"{model.name_or_path!r}, where it was loaded from. Load a complete stage, or start with a model without "
            "classes."
        )
    history, memory = load_stage_state(folder, model)
    if args.memory_bytes == 0:
        memory = None
    elif memory is None:
        raise ValueError(
            f"The stage in {model.name_or_path!r} keeps no memory, so sleep would forget what it knows. Pass "
            "`memory_budget='0'` and `sleep_steps=0`, or load a stage with a memory."
        )
    else:
        _check_codec(memory.codec, args)
        memory.set_budget(memory.budget if args.memory_bytes is None else args.memory_bytes)
    return history, memory


def _check_codec(codec: Codec, args: ContinualTrainingArguments) -> None:
    there = {"codec": codec.name, "codec_quality": codec.settings().get("quality")}
    for name, value in there.items():
        asked = getattr(args, name)
        if asked not in (None, value):
            raise ValueError(
                f"The memory of the stage was written with `{name}` {value!r}, got {asked!r}. Leave it out to go on "
                "with the same."
            )


def resume_point(
    output_dir: Path, resume: str | bool, history: History, protocol: dict, settings: dict, accelerator: Accelerator
) -> tuple[Path | None, Path | None]:
    """Return the stage to resume from and the checkpoint inside the task after it; `None` where there is none.

    Args:
        output_dir (`Path`): Where the run writes.
        resume (`str` or `bool`): `True` for the last stage and checkpoint there, or the path of one.
        history ([`History`]): What the current model has learned.
        protocol (`dict`): The protocol of this run, which must be the same, see [`make_protocol`].
        settings (`dict`): Hyper-parameters of this run, which must be the same if it resumes inside a task.
        accelerator (`Accelerator`): Its processes must all find the same.

    Raises:
        ValueError: If `resume` is neither a stage nor a checkpoint, or belongs to another run.
    """
    stage, checkpoint = find_resume_point(output_dir, resume, len(history))
    check_equal(accelerator, {"the point to go on from": (stage, checkpoint)}, "before a run goes on")
    num_done = len(history) if stage is None else stage_number(stage) + 1
    if stage is not None:
        check_same_run(stage, History.load(stage).protocol, protocol, num_done)
    if checkpoint is not None:
        before = History.load(checkpoint.parents[2])
        advice = "" if stage is None else f", or go on from the stage before: `resume_from_checkpoint={str(stage)!r}`"
        check_same_run(checkpoint.parents[2], before.protocol, protocol, num_done + 1, advice)
        check_same_settings(checkpoint, before.settings, settings)
    return stage, checkpoint


def refuse_other_run(output_dir: Path, history: History, resumes: bool) -> None:
    """Refuse an output folder whose stages or checkpoints are not of the run of a history.

    Args:
        output_dir (`Path`): Where the run writes.
        history ([`History`]): What has been learned.
        resumes (`bool`): Whether checkpoints inside a task are expected there.

    Raises:
        ValueError: If it holds another run, or a checkpoint inside a task that is not resumed.
    """
    advice = "Pass `resume_from_checkpoint=True` to go on with it, or choose an empty folder."
    if not resumes and list((output_dir / CHECKPOINTS_FOLDER).glob("*/*")):
        raise ValueError(f"`output_dir` {output_dir} holds another run, stopped inside a task. {advice}")
    stages = find_stages(output_dir)
    if stages and not History.load(stages[-1]).is_start_of(history):
        raise ValueError(f"`output_dir` {output_dir} holds another run ({len(stages)} stages). {advice}")


def drop_stale(output_dir: Path, history: History, protocol: dict, settings: dict, may_write: bool) -> None:
    """Drop measurements and files of tasks to come that have changed since they were made.

    Args:
        output_dir (`Path`): Where the run writes.
        history ([`History`]): What has been learned; measurements of tasks that have changed are dropped from it.
        protocol (`dict`): The current protocol, with the current tasks, see [`make_protocol`].
        settings (`dict`): The current hyper-parameters.
        may_write (`bool`): Whether this process is the one that writes files.
    """
    before, number = tasks_of(history.protocol), len(history)
    for later, now in enumerate(tasks_of(protocol)[number:], start=number):
        if before[later : later + 1] != [now]:
            history.untrained.pop(stage_name(later), None)
    if may_write and (output_dir / HISTORY_NAME).is_file():
        there = History.load(output_dir)
        is_same = is_same_run(there.protocol, protocol, number + 1)
        if not is_same or different_settings(there.settings, settings):
            drop_ingest(checkpoints_of(output_dir, number))


def check_run(model: PreTrainedModel, args: ContinualTrainingArguments, stream: TaskStream) -> None:
    """Check what a run is made of, before anything is written.

    Raises:
        TypeError: If something is of another kind.
        ValueError: If the output folder is a stage, or the weights are not float32.
    """
    if not isinstance(stream, TaskStream):
        raise TypeError(
            f"Expected `stream` to be a TaskStream, got {type(stream).__name__}. Build one, such as "
            "`ClassIncrementalStream(dataset, num_tasks=1)`."
        )
    if not isinstance(args, ContinualTrainingArguments):
        raise TypeError(f"Expected `args` to be ContinualTrainingArguments, got {type(args).__name__}.")
    if Path(args.output_dir, "config.json").is_file():
        raise ValueError(
            f"`output_dir` must be a folder of its own, but {args.output_dir} holds a stage or a model, which a run "
            "would write into. Choose another."
        )
    if isinstance(model, torch.nn.Module) and (found := {p.dtype for p in model.parameters()}) != {torch.float32}:
        raise ValueError(
            f"Expected a model in float32, whose weights can learn, got {sorted(map(str, found))}. Load it with "
            "`dtype=torch.float32`; `bf16=True` and `fp16=True` compute in low precision all the same."
        )
