"""Recipe: what is chosen for arguments that are left open, and that nothing given is touched."""

import math

import numpy as np
import PIL.Image as Pillow
import pytest
import torch
from conftest import images_of, make_images

from hf_wakesleep import History, LearnedCodec
from hf_wakesleep.learning.lda import rank_error
from hf_wakesleep.learning.recipe import (
    Facts,
    choices_table,
    choose,
    code_quality,
    facts_of,
    sleep_ratio,
    sleep_steps,
)
from hf_wakesleep.memory.table import INDEX_BYTES

OPEN = {
    "learning_rate": None,
    "sleep_steps": None,
    "backbone_learning_rate_ratio": None,
    "wake_plasticity": None,
}
PRETRAINED = Facts(is_pretrained=True, feature_dim=192, side=96, is_coloured=True)
SCRATCH = Facts(is_pretrained=False, feature_dim=256, side=28, is_coloured=False)


def test_what_is_left_open_is_chosen_and_what_is_given_is_not(make_args):
    pretrained = choose(make_args(**OPEN), PRETRAINED)
    assert {name: choice.value for name, choice in pretrained.items()} == {
        "wake_plasticity": "head",
        "learning_rate": 1e-3,
        "backbone_learning_rate_ratio": 0.05,
        "label_smoothing_factor": 0.1,
        "augmentation": "crop-flip",
    }
    scratch = choose(make_args(**OPEN), SCRATCH)
    assert scratch["backbone_learning_rate_ratio"].value == 1.0
    assert scratch["learning_rate"].value == 5e-4
    assert scratch["augmentation"].value == "crop"
    assert scratch["wake_plasticity"].value == "full-first"
    given = choose(make_args(learning_rate=0.5, augmentation="none"), PRETRAINED)
    assert not {"learning_rate", "backbone_learning_rate_ratio", "augmentation"} & given.keys()
    lines = choices_table(scratch).splitlines()
    assert len(lines) == 1 + len(scratch)
    assert all(
        name in line and choice.reason in line for line, (name, choice) in zip(lines[1:], scratch.items(), strict=True)
    )


def pictures(dataset):
    """Return the images of a dataset."""
    return list(dataset["image"])


def test_facts_are_those_of_the_backbone_and_the_first_images(make_model):
    grey = make_images([0, 1], ["a", "b"], side=5)
    facts = facts_of(make_model(), pictures(grey))
    assert facts == Facts(is_pretrained=False, feature_dim=32, side=5, is_coloured=False)
    rgb = grey.map(lambda row: {"image": row["image"].convert("RGB")})
    assert not facts_of(make_model(), pictures(rgb)).is_coloured
    red = grey.map(lambda row: {"image": Pillow.merge("RGB", [row["image"], *[Pillow.new("L", (5, 5))] * 2])})
    assert facts_of(make_model(), pictures(red)).is_coloured
    named = make_model()
    named.config.backbone_config._name_or_path = "somebody/vit"
    assert facts_of(named, pictures(grey)).is_pretrained


def test_a_sleep_follows_the_images_of_its_task_but_is_no_shorter_than_that_of_a_mean_task(make_args):
    args = make_args(sleep_batch_size=10)
    assert sleep_steps(args, True, 100, []) == 120
    assert sleep_steps(args, True, 200, [100]) == 240
    assert sleep_steps(args, True, 2, [100]) == round(12 * 51 / 10)
    assert sleep_steps(args, True, 1, []) == 1
    assert sleep_steps(args, False, 1000, [1000] * 50) == sleep_steps(args, False, 1000, [])


@pytest.mark.parametrize(("error", "ratio"), [(0.0, 0.05), (0.005, 0.05), (0.01, 0.1), (0.02, 0.2), (0.5, 0.2)])
def test_a_pretrained_backbone_learns_asleep_the_faster_the_worse_lda_ranks(error, ratio):
    assert sleep_ratio(error) == ratio


def test_lda_is_tested_on_memories_that_it_was_not_fitted_to():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([10, 1, 7, 20]))
    noise = torch.randn(len(labels), 3, generator=generator)
    apart = 20 * torch.nn.functional.one_hot(labels, 4)[:, [0, 2, 3]].float()
    assert rank_error(apart + noise, labels) == 0
    chance = rank_error(torch.randn(4000, 3, generator=generator), torch.arange(4000) // 1000)
    assert chance == pytest.approx(0.5, abs=0.03)
    swapped = rank_error(torch.tensor([[0.0], [0.1], [5.0], [5.1], [0.05], [9.0]]), torch.tensor([0, 0, 1, 1, 1, 1]))
    assert 0 < swapped < 1
    for few in (torch.tensor([0, 1]), torch.tensor([0, 0])):
        assert rank_error(noise[:2], few) == 0


def test_the_best_quality_is_taken_at_which_all_images_fit():
    pixels = list(images_of(4))

    def size_at(quality):
        return math.ceil(100 * np.mean([len(code) + INDEX_BYTES for code in LearnedCodec(quality).encode(pixels)]))

    assert code_quality(pixels, 100, 10**9) == 90
    chosen = code_quality(pixels, 100, size_at(50))
    assert size_at(chosen) <= size_at(50) < size_at(chosen + 1)
    assert code_quality(pixels, 100, 10) == 30


def test_choices_are_shown_used_and_kept(make_trainer, capsys, tmp_path):
    args = make_trainer(**OPEN).args
    trainer = make_trainer(**OPEN, disable_tqdm=False, output_dir="chosen", max_steps=1)
    assert trainer.choices.keys() >= {"learning_rate", "wake_plasticity"}
    trainer.train()
    assert "Chosen for what the arguments leave open" in capsys.readouterr().out
    assert trainer.args.learning_rate == args.learning_rate == 1e-3
    stored = History.load(tmp_path / "chosen" / "task-02")
    assert stored.chosen.keys() == trainer.choices.keys()
    assert stored.settings["wake_plasticity"] == trainer.choices["wake_plasticity"].value
    assert "were chosen from backbone and stream" in (tmp_path / "chosen" / "task-02" / "README.md").read_text()
