"""The README: its Python runs as it stands, on local files under the names of the Hub."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import digits_of
from transformers import AutoModel, TimmWrapperConfig

ROOT = Path(__file__).parents[1]
SHORT = "sleep_steps=3, num_train_epochs=1, disable_tqdm=True"


def block(name: str) -> str:
    """Return the code that follows a marker in the README."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"README.md has no block after <!-- {name} -->"
    return found[1]


@pytest.fixture
def hub_names(tmp_path):
    """Put digits and a small timm ViT where the names of the quick start lead, relative to the working directory."""
    data = digits_of(range(10), 20).train_test_split(test_size=0.25, stratify_by_column="label", seed=0)
    for split, part in data.items():
        (tmp_path / "uoft-cs" / "cifar100").mkdir(parents=True, exist_ok=True)
        part.rename_columns({"image": "img", "label": "fine_label"}).to_parquet(
            tmp_path / "uoft-cs" / "cifar100" / f"{split}.parquet"
        )
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
        pretrained_cfg={"input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        num_labels=0,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "timm" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    return tmp_path


def test_the_quick_start_runs(hub_names):
    start = block("quick start")
    shorter = start
    for whole, part in (("num_tasks=10", "num_tasks=5"), ('"out/cifar100", ', f'"out/cifar100", {SHORT}, ')):
        assert whole in start
        shorter = shorter.replace(whole, part)
    for code in (shorter, block("later") + "\nprint(len(memory), classify.model.config.num_labels)"):
        done = subprocess.run([sys.executable, "-c", code], cwd=hub_names, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["90", "6"]
    assert (hub_names / "out" / "cifar100" / "task-05" / "model.safetensors").exists()


def test_the_commands_install_what_they_run():
    assert 'pip install ".[examples]" && accelerate launch examples/train_cil.py' in block("main job")
    assert block("test").count("\n") == 1
    assert 'pip install -e ".[test]" && pytest' in block("test")


def test_the_file_map_names_every_module():
    text = (ROOT / "README.md").read_text()
    modules = [path.name for path in (ROOT / "hf_wakesleep").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in modules if f"`{name}`" not in text] == []
