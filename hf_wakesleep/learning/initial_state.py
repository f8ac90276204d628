"""Initial state: the history and the memory that a run starts with."""

from transformers import PreTrainedModel

from ..codecs.base import Codec
from ..codecs.registry import DEFAULT_CODEC, make_codec
from ..memory.memory import SemiParametricMemory
from ..model.configuration_wakesleep import WakeSleepConfig
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import HISTORY_NAME, History
from ..stages.stage import load_stage_state, stage_folder
from .arguments import ContinualTrainingArguments


def initial_state(
    model: WakeSleepForImageClassification, args: ContinualTrainingArguments, codec: Codec | None = None
) -> tuple[History, SemiParametricMemory | None]:
    """Return history and memory to start with: new ones for a new model, else those of the stage it was loaded from.

    Args:
        model ([`WakeSleepForImageClassification`]): A model without classes, or what `from_pretrained` gave.
        args ([`ContinualTrainingArguments`]): `codec`, `codec_quality` and `memory_budget` of a new memory.
        codec ([`Codec`], *optional*): The codec of a new memory, instead of what the arguments say.

    Raises:
        TypeError: If it is another model.
        ValueError: If the model knows classes, but there is no history where it was loaded from, or the files there
            are damaged or of different stages.
    """
    if not isinstance(model, PreTrainedModel) or model.config.model_type != WakeSleepConfig.model_type:
        raise TypeError(f"Expected a WakeSleepForImageClassification, got {type(model).__name__}.")
    if not model.config.classes:
        if codec is None:
            settings = {} if args.codec_quality is None else {"quality": args.codec_quality}
            codec = make_codec(args.codec or DEFAULT_CODEC, **settings)
        return History(), None if args.memory_bytes == 0 else SemiParametricMemory(codec, args.memory_bytes)
    folder = stage_folder(model)
    if not (folder / HISTORY_NAME).is_file():
        raise ValueError(
            f"The model knows {len(model.config.classes)} classes, but there is no {HISTORY_NAME} in "
            f"{model.name_or_path!r}, where it was loaded from. Load a whole stage, or start with a model without "
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
