"""The README: its commands and its Python run as they stand, on local files under the names of the Hub."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import digits_of
from forked import run_script
from paths import ROOT
from transformers import AutoModel, TimmWrapperConfig

pytestmark = pytest.mark.slow

SHORTER = {  # what makes the Python of the README quick
    "image_size=96": "image_size=16",
    'memory_budget="20MB")': 'memory_budget="20MB", sleep_steps=3, disable_tqdm=True)',
    '("out/next")': '("out/next", sleep_steps=3, disable_tqdm=True)',
}
SHORT = ["--image_size", "16", "--sleep_steps", "3", "--num_train_epochs", "1", "--disable_tqdm", "true"]


def block(name: str) -> str:
    """Return the code that follows a marker in the README."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"README.md has no block after <!-- {name} -->"
    return found[1]


def arguments_of(name: str) -> list[str]:
    """Return script and arguments of a command in the README."""
    launch, what, *arguments = shlex.split(block(name).replace("\\\n", " "))
    assert (launch, what) == ("accelerate", "launch")
    return arguments


@pytest.fixture
def photos(tmp_path):
    """Put folders of digits, and a small timm ViT, where the README's names lead from the working directory."""
    for folder, labels in (("photos", range(6)), ("next", [6, 7])):
        data = digits_of(labels, 10).train_test_split(test_size=0.2, stratify_by_column="label", seed=0)
        for split, part in data.items():
            for number, row in enumerate(part):
                home = tmp_path / folder / split / part.features["label"].names[row["label"]]
                home.mkdir(parents=True, exist_ok=True)
                row["image"].save(home / f"{number}.png")
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
        pretrained_cfg={"input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        num_labels=0,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "timm" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    return tmp_path


def test_a_few_images_are_taught_live(photos):
    for number, row in enumerate(digits_of(range(3), 4)):
        home = photos / "few" / str(row["label"])
        home.mkdir(parents=True, exist_ok=True)
        row["image"].save(home / f"{number}.png")
    row["image"].save(photos / "unseen.jpg")
    code = block("live").replace("image_size=96", "image_size=16")
    told = "\nprint(Learner.from_pretrained('stage').classes, len(learner.memory))"
    done = subprocess.run([sys.executable, "-c", code + told], cwd=photos, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'score'" in done.stdout
    assert all(f"'{label}'" in done.stdout.splitlines()[-1] for label in range(3))
    assert done.stdout.split()[-1] == "12"


def test_two_months_are_learned_in_python_and_loaded(photos):
    months = block("quick start") + block("next month")
    for given, quick in SHORTER.items():
        assert given in months
        months = months.replace(given, quick)
    told = "\nprint(len(memory), classify.model.config.num_labels, model.config.num_labels)"
    for code in (months, block("later") + told):
        done = subprocess.run([sys.executable, "-c", code], cwd=photos, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["64", "8", "8"]  # eight classes of eight training images


def test_two_months_are_learned_from_the_shell(photos):
    for name, extra in (("folder", SHORT), ("next month, folder", SHORT[2:])):
        script, *arguments = arguments_of(name)
        done = run_script(ROOT / script, *arguments, *extra, cwd=photos)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (photos / "out" / "next" / "task-02" / "model.safetensors").exists()
