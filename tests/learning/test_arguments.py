"""ContinualTrainingArguments: sizes, checks, help, the command line."""

import dataclasses

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_wakesleep import ContinualTrainingArguments
from hf_wakesleep.memory.budget import parse_bytes

OWN = [
    field
    for field in dataclasses.fields(ContinualTrainingArguments)
    if field.name not in {inherited.name for inherited in dataclasses.fields(TrainingArguments)}
]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20MB", 20_000_000),
        ("512KB", 512_000),
        ("1.5 kib", 1536),
        ("2GiB", 2**31),
        ("77", 77),
        (99, 99),
        (2e7, 20_000_000),
        ("0", 0),
        (None, None),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["20 apples", "MB", "-1KB", "", "1e6"])
def test_what_is_no_size_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="Expected a size such as '20MB'"):
        ContinualTrainingArguments(str(tmp_path), memory_budget=text)


def test_every_field_has_help():
    assert [field.name for field in OWN if not field.metadata["help"]] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sleep_steps", -1),
        ("sleep_batch_size", 0),
        ("learning_rate", 0.0),
        ("backbone_learning_rate_ratio", -1.0),
        ("lda_weight", 1.1),
        ("freeze_fraction", 1.0),
        ("freeze_fraction", -0.1),
        ("held_out_share", 1.0),
        ("held_out_share", -0.1),
        ("codec", "jpeg"),
        ("wake_plasticity", "half"),
        ("sleep_plasticity", "none"),
        ("augmentation", "blur"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        ContinualTrainingArguments(str(tmp_path), **{name: value})


def test_sleep_without_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`memory_budget` is 0"):
        ContinualTrainingArguments(str(tmp_path), memory_budget="0", sleep_steps=10)
    assert ContinualTrainingArguments(str(tmp_path), memory_budget="0", sleep_steps=0).memory_bytes == 0
    assert not ContinualTrainingArguments(str(tmp_path), memory_budget="0").sleeps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "raw", "codec_quality": 50}, "`codec_quality` is for lossy codecs"),
        ({"codec": "raw", "codec_fit_steps": 16}, "is for `codec='learned'`, got 'raw'"),
        ({"codec_fit_steps": 1}, "is for `codec='learned'`, got None"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "`load_best_model_at_end`",
        ),
        ({"prediction_loss_only": True}, "`prediction_loss_only` must be False"),
        ({"memory_budget": -5}, "Expected a size"),
        ({"held_out_share": 0}, "`lda_weight` is set on memories"),
        ({"freeze_fraction": 0.1, "sleep_steps": 0}, "A sleep freezes what is important"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ContinualTrainingArguments(str(tmp_path), **changes)


def test_processes_that_see_no_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes were started, but .* Pass `use_cpu=True`"):
        ContinualTrainingArguments(str(tmp_path))


def test_all_fields_are_on_the_command_line(tmp_path):
    command = ["--output_dir", str(tmp_path), "--memory_budget", "20MB", "--codec", "raw", "--lda_weight", "0.5"]
    (args,) = HfArgumentParser(ContinualTrainingArguments).parse_args_into_dataclasses(command)
    assert (args.memory_bytes, args.codec, args.lda_weight) == (20_000_000, "raw", 0.5)


def test_a_default_of_a_subclass_is_checked_as_ours_are(tmp_path):
    @dataclasses.dataclass
    class OwnArguments(ContinualTrainingArguments):
        wake_plasticity: str = "head"

    assert OwnArguments(str(tmp_path)).plasticities == {"head", "full"}
    with pytest.raises(ValueError, match=r"`wake_plasticity` must be one of \['full', 'full-first', 'head', 'lora'\]"):
        OwnArguments(str(tmp_path), wake_plasticity="all")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True]),
        ({"wake_plasticity": "lora"}, [True, True]),
        ({"wake_plasticity": "head"}, [False, False]),
        ({"wake_plasticity": "full-first"}, [True, False]),
        ({"wake_plasticity": "head", "wake_replay": True}, [True, True]),
        ({"wake_replay": False}, [False, False]),
        ({"memory_budget": "0", "sleep_steps": 0}, [False, False]),
    ],
)
def test_wake_replays_by_default_where_it_trains_the_backbone(tmp_path, changes, expected):
    args = ContinualTrainingArguments(str(tmp_path), **changes)
    assert [args.replays_awake(task) for task in range(2)] == expected


def test_wake_replay_is_on_the_command_line(tmp_path):
    parser = HfArgumentParser(ContinualTrainingArguments)
    for given, expected in (([], None), (["--wake_replay", "true"], True), (["--wake_replay", "false"], False)):
        (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), *given])
        assert args.wake_replay is expected
