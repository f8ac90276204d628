"""The examples run as their users run them: as programs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import digits_of
from forked import run_example
from paths import EXAMPLES
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_wakesleep import LearnedNetworks, SemiParametricMemory, WakeSleepForImageClassification

pytestmark = pytest.mark.slow

SHORT = ["--num_train_epochs", "1", "--disable_tqdm", "true"]
SHORT_SLEEP = ["--sleep_steps", "3"]


def train(cwd, *args, succeeds=True):
    return run_example("train_cil.py", *SHORT, *args, cwd=cwd, succeeds=succeeds)


def test_the_main_job_runs_without_arguments_and_learns(tmp_path):
    """The default command as the README gives it, whole: about a minute."""
    command = ["accelerate", "launch", str(EXAMPLES / "train_cil.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out" / "digits" / "history.json").read_text())
    assert history["pooled_accuracy"][-1] >= 0.93
    assert history["forgetting"][-1] <= 0.06
    assert "pooled accuracy" in done.stdout
    assert "task-05" in done.stdout
    assert "100%" in done.stderr  # progress bars
    assert (tmp_path / "out" / "digits" / "history.png").exists()
    for number in range(1, 6):
        stage = tmp_path / "out" / "digits" / f"task-{number:02d}"
        assert WakeSleepForImageClassification.from_pretrained(stage).config.num_labels == 2 * number


@pytest.mark.parametrize("method", ["finetune", "replay", "joint", "lda"])
def test_baselines_are_one_argument_away(tmp_path, method):
    train(tmp_path, "--method", method, "--num_tasks", "2", "--output_dir", "out")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert len(history["accuracy_matrix"]) == (1 if method == "joint" else 2)
    assert (history["num_codes"][-1] > 0) == (method == "replay")
    assert history["sleep_images"][-1] == 0


def test_parquet_files_uneven_tasks_and_resuming(tmp_path):
    data = digits_of(range(5), 12).train_test_split(test_size=0.25, stratify_by_column="label", seed=0)
    for split, part in data.items():
        part.to_parquet(tmp_path / f"{split}.parquet")
    args = ["--train_file", "train.parquet", "--test_file", "test.parquet", "--classes_per_task", "3", "1", "1"]
    args += ["--codec", "raw", "--memory_budget", "80KB", "--image_size", "16", "--seed", "5", "--output_dir", "run"]
    args += SHORT_SLEEP
    train(tmp_path, *args)
    first = (tmp_path / "run" / "history.json").read_text()
    assert [len(record["classes"]) for record in json.loads(first)["records"]] == [3, 1, 1]
    train(tmp_path, *args, "--resume_from_checkpoint", "true")
    assert (tmp_path / "run" / "history.json").read_text() == first
    assert "holds another run" in train(tmp_path, *args, succeeds=False).stderr


def test_a_folder_of_images(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("ape", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    train(tmp_path, *SHORT_SLEEP, "--image_folder", "images", "--num_tasks", "2", "--output_dir", "out", "--seed", "0")
    assert json.loads((tmp_path / "out" / "history.json").read_text())["classes"] in (["ape", "bee"], ["bee", "ape"])


def test_wrong_arguments_end_with_one_clear_line(tmp_path):
    for args, message in [
        (["--num_tasks", "11"], "`num_tasks` must lie in 1..10"),
        (["--memory_budget", "5KB", "--codec", "raw"], "`memory_budget` must hold at least one code per class"),
        (["--label_column", "species"], "Expected a column 'species'"),
    ]:
        assert message in train(tmp_path, *args, "--output_dir", "out", succeeds=False).stderr.splitlines()[-1]
        assert not (tmp_path / "out" / "history.json").exists()


def test_methods_are_compared_over_seeds(tmp_path):
    args = ["benchmarks/compare.py", "--methods", "finetune", "lda", "--seeds", "1", "2", "--output_dir", "cmp"]
    args += ["--", *SHORT, "--num_tasks", "2"]
    done = run_example(*args, cwd=tmp_path)
    table = (tmp_path / "cmp" / "compare.md").read_text()
    assert table.splitlines()[2].startswith("| finetune |")
    assert " ± " in table
    assert table.strip() in done.stdout
    assert (tmp_path / "cmp" / "compare.png").exists()
    assert "task-01" not in run_example(*args, cwd=tmp_path).stdout  # nothing is run again


def test_a_codec_is_trained_and_fits_the_package(tmp_path):
    digits_of(range(2), 8).to_parquet(tmp_path / "digits.parquet")
    args = ["--dataset_name", "parquet", "--data_files", "digits.parquet", "--max_steps", "3", "--count_batches", "1"]
    run_example("train_codec.py", *args, cwd=tmp_path)
    assert not (tmp_path / "codec.safetensors.checkpoint").exists()
    LearnedNetworks().unpack(load_file(tmp_path / "codec.safetensors"))


def test_a_learned_memory_is_written_and_inspected_beside_its_originals(tmp_path):
    data = digits_of(range(2), 12)
    data.to_parquet(tmp_path / "train.parquet")
    args = ["--train_file", "train.parquet", "--test_file", "train.parquet", "--num_tasks", "2", "--codec", "learned"]
    train(tmp_path, *args, "--codec_fit_steps", "2", *SHORT_SLEEP, "--output_dir", "out")
    done = run_example("inspect_memory.py", "out/task-02", "--data_files", "train.parquet", cwd=tmp_path)
    assert "24 codes by 'learned'" in done.stdout
    assert "originals above their memories" in done.stdout
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.size[1] > picture.size[0] / 2


def test_rate_and_distortion_of_all_codecs_are_compared(tmp_path):
    digits_of(range(2), 4).to_parquet(tmp_path / "test.parquet")
    args = ["--data_files", "test.parquet", "--image_size", "32", "--count", "4", "--output_dir", "out"]
    done = run_example("benchmarks/rate_distortion.py", *args, cwd=tmp_path)
    curves = json.loads((tmp_path / "out" / "rate_distortion.json").read_text())["curves"]
    assert set(curves) == {"learned", "WebP", "JPEG", "AVIF"}
    assert all(size > 0 for curve in curves.values() for size, _ in curve)
    assert done.stdout.startswith("learned")


def test_the_cost_of_decoding_is_a_share_of_a_step(tmp_path):
    args = ["--batch_size", "2", "--image_size", "32", "--repetitions", "1"]
    done = run_example("benchmarks/decoding.py", *args, cwd=tmp_path)
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[3:5]] == ["| learned", "| webp"]


def save_digits_and_vit(folder) -> list[str]:
    """Write four classes of digits and a backbone with random weights; return the arguments that name them."""
    vit = ViTConfig(image_size=8, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    vit.num_attention_heads = 2
    for part in (ViTModel(vit), ViTImageProcessor()):
        part.save_pretrained(folder / "vit")
    digits_of(range(4), 8).to_parquet(folder / "digits.parquet")
    return ["--train_file", "digits.parquet", "--test_file", "digits.parquet", "--backbone", "vit"]


def test_lda_is_measured_with_few_images_a_class(tmp_path):
    args = [*save_digits_and_vit(tmp_path), "--image_size", "8", "--few", "1", "8", "--many", "8", "--num_new", "1"]
    done = run_example("benchmarks/lda_few.py", *args, "--num_draws", "2", cwd=tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows if row[0].isdigit()] == ["1", "8"] * 2
    assert all(row[1].count(" ± ") == row[2].count(" ± ") == 2 for row in rows[2:4])
    assert rows[6][1] == rows[6][2]  # one image of every class: the nearest mean
    assert float(rows[7][2].split(" ± ")[0]) > 50


def test_selections_are_compared_over_class_orders(tmp_path):
    files = save_digits_and_vit(tmp_path)
    grid = ["--image_size", "8", "--num_tasks", "2", "--budgets", "4000", "5000", "--seeds", "1", "2"]
    grid += ["--codecs", "webp:1", "learned:40"]
    run_example("benchmarks/selection.py", *files, *grid, "--output_dir", "out", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert {name.split(", ")[1] for name in found} == {"reservoir", "sample", "herding"}
    assert [name.split(" ")[0] for name in found] == ["webp:1"] * 3 + ["learned:40"] * 3
    assert all(len(run) == 2 for budgets in found.values() for runs in budgets.values() for run in runs)


def save_images(folder, names, count=6):
    """Write a folder of random images for each class."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(index).integers(0, 256, (count, 9, 12, 3), dtype=np.uint8)
        for row in range(count):
            Image.fromarray(pixels[row]).save(folder / name / f"{row}.png")


def error_of(done) -> str:
    """Return the one line that a script ends with."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert done.stderr.rstrip().endswith(line)
    return line.split(": error: ", 1)[1]


def test_a_folder_of_one_class_is_learned(tmp_path):
    save_images(tmp_path / "images", ["ape"])
    train(tmp_path, *SHORT_SLEEP, "--image_folder", "images", "--output_dir", "out")
    assert json.loads((tmp_path / "out" / "history.json").read_text())["classes"] == ["ape"]


def test_a_folder_with_splits_is_learned(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        save_images(tmp_path / "images" / split, ["ape", "bee"], count)
    train(tmp_path, *SHORT_SLEEP, "--image_folder", "images", "--num_tasks", "2", "--output_dir", "out")
    records = json.loads((tmp_path / "out" / "history.json").read_text())["records"]
    assert [(record["num_train_images"], record["num_eval_images"]) for record in records] == [(6, 3)] * 2


FOLDERS = {
    "missing": ([], "there is no folder 'images'"),
    "empty": (["images/"], "but images has no images"),
    "empty class": (["images/ape/1.png", "images/bee/"], r"none are read from \['.*images/bee'\]"),
    "empty class of a split": (
        ["images/train/ape/1.png", "images/train/bee/1.png", "images/test/ape/1.png", "images/test/bee/"],
        r"none are read from \['.*images/test/bee'\]",
    ),
    "class called train": (["images/train/1.png", "images/bus/1.png"], r"none are read from \['.*images/bus'\]"),
    "no subfolder": (["images/1.png"], r"images lie in \['.*images'\]"),
    "names of splits": (
        ["images/ape/train_0.png", "images/ape/1.png", "images/bee/train_1.png", "images/bee/2.png"],
        "2 of 4 are not, such as",
    ),
    "folders in folders": (["images/ape/1.png", "images/ape/more/1.png"], r"images lie in \['.*ape', '.*ape/more'\]"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_which_something_would_be_left_out_is_refused(tmp_path, case):
    paths, message = FOLDERS[case]
    for path in paths:
        folder, _, name = path.rpartition("/")
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        if name:
            Image.new("L", (4, 4)).save(tmp_path / path)
    line = error_of(train(tmp_path, "--image_folder", "images", "--output_dir", "out", succeeds=False))
    assert line.startswith("`--image_folder` must")
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seed", "-1"], "`seed` must be"),
        (["--lr_scheduler_type", "bogus"], "bogus"),
        (["--num_tasks", "0"], "`num_tasks` must lie in 1..10, the number of classes of the dataset, got 0"),
        (["--image_folder", "a", "--train_file", "b"], "one source of images, got `--train_file`, `--image_folder`"),
        (["--train_file", "none.parquet"], "none.parquet"),
        (["--image_size", "9"], "`--image_size` must be a multiple of 4"),
        (["--sleep_step", "3"], "--sleep_step"),
    ],
)
def test_whatever_is_wrong_is_one_line(tmp_path, args, message):
    assert message in error_of(train(tmp_path, *args, "--output_dir", "out", succeeds=False))


def test_a_traceback_is_shown_to_developers(tmp_path):
    command = [sys.executable, "-X", "dev", str(EXAMPLES / "train_cil.py"), "--num_tasks", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


def test_a_folder_is_one_task_unless_somebody_says_otherwise(tmp_path):
    save_images(tmp_path / "images", ["ape", "bee", "cat"])
    train(tmp_path, *SHORT_SLEEP, "--image_folder", "images", "--output_dir", "out")
    assert len(json.loads((tmp_path / "out" / "history.json").read_text())["records"]) == 1


CONTINUE = [*SHORT, *SHORT_SLEEP]


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """Return a stage of two tasks of three, of a seed and a codec of its own; the next one is beside it."""
    folder = tmp_path_factory.mktemp("stage")
    train(
        folder,
        *SHORT_SLEEP,
        "--classes_per_task",
        "2",
        "3",
        "5",
        "--seed",
        "3",
        "--codec",
        "webp",
        "--output_dir",
        "out",
    )
    return folder / "out" / "task-02"


def learned(folder) -> list[dict]:
    return json.loads((folder / "history.json").read_text())["records"][2:]


def test_a_stage_is_taught_its_next_task_with_its_own_seed_codec_and_sizes(tmp_path, stage):
    run_example("continue_from_hub.py", str(stage), *CONTINUE, "--output_dir", "next", cwd=tmp_path)
    whole = load_file(stage.parent / "task-03" / "model.safetensors")
    here = load_file(tmp_path / "next" / "task-03" / "model.safetensors")
    assert all(here[name].equal(value) for name, value in whole.items())
    again = [str(stage), *CONTINUE, "--output_dir", "next"]
    assert "holds another run" in error_of(run_example("continue_from_hub.py", *again, cwd=tmp_path, succeeds=False))
    run_example("continue_from_hub.py", *again, "--resume_from_checkpoint", "true", cwd=tmp_path)


def test_a_stage_is_taught_all_new_classes_of_a_folder_at_once(tmp_path, stage):
    save_images(tmp_path / "images", ["ape", "bee", "cat"])
    args = [str(stage), *CONTINUE, "--image_folder", "images"]
    for more, sizes in (([], [3]), (["--classes_per_task", "1", "2"], [1, 2])):
        out = f"next{len(more)}"
        done = run_example("continue_from_hub.py", *args, *more, "--output_dir", out, cwd=tmp_path)
        assert [len(record["new_classes"]) for record in learned(tmp_path / out)] == sizes
    assert "Accuracy is unknown for 5 of 8 classes" in done.stdout
    args += ["--num_tasks", "4", "--output_dir", "bad"]
    line = error_of(run_example("continue_from_hub.py", *args, cwd=tmp_path, succeeds=False))
    assert line == "`--num_tasks` must lie in 1..3, the number of new classes, got 4."


def test_known_classes_in_a_folder_are_more_images_of_them(tmp_path, stage):
    known = json.loads((stage / "history.json").read_text())["classes"]
    save_images(tmp_path / "images", [known[0], known[3], "bee"])
    args = [str(stage), *CONTINUE, "--image_folder", "images", "--output_dir", "next"]
    run_example("continue_from_hub.py", *args, cwd=tmp_path)
    (record,) = learned(tmp_path / "next")
    assert record["name"] == "task-03"
    assert record["new_classes"] == ["bee"]
    assert set(record["classes"]) == {known[0], known[3], "bee"}
    memory = SemiParametricMemory.from_pretrained(str(tmp_path / "next" / "task-03"))
    tasks = {name: set(memory.tasks[memory.labels == index]) for index, name in enumerate(memory.classes)}
    assert [tasks[name] for name in (known[0], known[1], known[3], "bee")] == [{0, 2}, {0}, {1, 2}, {2}]
    assert [value is None for value in record["accuracy"]] == [True, True, False]


def test_a_stage_without_memory_is_taught_without(tmp_path):
    train(tmp_path, "--method", "finetune", "--num_train_epochs", "1", "--output_dir", "out")
    run_example("continue_from_hub.py", "out/task-01", *SHORT, "--output_dir", "next", cwd=tmp_path)
    assert (tmp_path / "next" / "task-02").is_dir()
    assert not (tmp_path / "next" / "task-02" / "memory").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{folder}"], "Expected the folder of a stage, such as"),
        (["nowhere/at/all"], "nowhere"),
        (["{stage}", "--backbone", "x"], "--backbone"),
        (["{stage}", "--codec", "raw"], "was written with `codec` 'webp', got 'raw'"),
        (["{folder}/task-03"], "The stage knows all classes of these images"),
    ],
)
def test_what_a_stage_cannot_be_taught_is_one_line(tmp_path, stage, args, message):
    args = [arg.format(stage=stage, folder=stage.parent) for arg in args]
    done = run_example("continue_from_hub.py", *args, *CONTINUE, "--output_dir", "next", cwd=tmp_path, succeeds=False)
    assert message in error_of(done)


def test_test_images_of_known_classes_tell_what_becomes_of_their_tasks(tmp_path, stage):
    known = json.loads((stage / "history.json").read_text())["classes"]
    for split, count in (("train", 6), ("test", 3)):
        save_images(tmp_path / "images" / split, [known[0], "bee"], count)
    args = [str(stage), *CONTINUE, "--image_folder", "images", "--output_dir", "next"]
    assert "Accuracy is unknown for 4 of 6 classes" in run_example("continue_from_hub.py", *args, cwd=tmp_path).stdout
    (record,) = learned(tmp_path / "next")
    assert (record["evaluated_images"], record["num_unevaluated"]) == ([3, 0, 3], 4)
    assert [value is None for value in record["accuracy"]] == [False, True, False]


def test_test_images_of_known_classes_alone_are_those_of_their_tasks(tmp_path, stage):
    """The old training images are gone; the test images were kept."""
    known = json.loads((stage / "history.json").read_text())["classes"]
    save_images(tmp_path / "images" / "train", ["bee"], 6)
    save_images(tmp_path / "images" / "test", ["bee", *known], 3)
    args = [str(stage), *CONTINUE, "--image_folder", "images", "--output_dir", "next"]
    run_example("continue_from_hub.py", *args, cwd=tmp_path)
    (record,) = learned(tmp_path / "next")
    assert record["new_classes"] == record["classes"] == ["bee"]
    assert record["evaluated_images"] == [6, 9, 3]
    assert None not in record["accuracy"]


def test_a_stage_of_other_classes_is_not_taught_digits(tmp_path):
    save_images(tmp_path / "images", ["ape", "bee"], 8)
    train(tmp_path, *SHORT_SLEEP, "--image_folder", "images", "--num_tasks", "1", "--output_dir", "out")
    line = error_of(
        run_example("continue_from_hub.py", "out/task-01", "--output_dir", "x", cwd=tmp_path, succeeds=False)
    )
    assert line.startswith("Expected images to teach, such as `--image_folder DIR`")
