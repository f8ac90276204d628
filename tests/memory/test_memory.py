"""SemiParametricMemory: the budget to the byte, balance, sampling, exact save and load."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import images_of
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_wakesleep import CodecError, MemoryBytes, RawCodec, SemiParametricMemory, WebPCodec
from hf_wakesleep.memory.files import MemoryFiles
from hf_wakesleep.memory.table import INDEX_BYTES


def filled(budget=None, per_class=(5, 5, 5), codec=None):
    memory = SemiParametricMemory(codec or RawCodec(), budget)
    memory.set_classes([f"class {index}" for index in range(len(per_class))], statistics_bytes=100)
    labels = np.repeat(np.arange(len(per_class)), per_class)
    memory.write(memory.codec.encode(images_of(len(labels))), labels, task=0)
    return memory


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 20_000),
    st.integers(0, 1000),
)
def test_the_budget_holds_at_all_times_and_classes_stay_balanced(tasks, extra, seed):
    """Codes of random sizes arrive task by task; nothing ever exceeds the budget, and no class starves."""
    generator = np.random.default_rng(seed)
    floor = SemiParametricMemory(RawCodec(), None, [f"c{i}" for i in range(sum(map(len, tasks)))]).num_bytes.total
    memory = SemiParametricMemory(RawCodec(), floor + 12 * 120 + extra)
    for number, sizes in enumerate(tasks):
        first = len(memory.classes)
        memory.set_classes([f"c{index}" for index in range(first + len(sizes))], statistics_bytes=0)
        labels = np.repeat(np.arange(first, first + len(sizes)), sizes)
        codes = [generator.bytes(int(generator.integers(1, 100))) for _ in labels]
        memory.write(codes, labels, number)
        assert memory.num_bytes.total <= memory.budget
        counts = np.bincount(memory.labels, minlength=len(memory.classes))
        assert counts.min() >= 1
        offered = np.asarray([size for task in tasks[: number + 1] for size in task])
        full = counts < np.minimum(offered, counts.max() - 1)
        assert not full.any()


@pytest.mark.parametrize("per_class", [(1,), (5, 5), (40,) * 25, (1,) * 3000, (30,) * 1000], ids=len)
@pytest.mark.parametrize("num_tasks", [1, 100])
@pytest.mark.parametrize("largest", [50, 2000], ids="to {} bytes".format)
def test_every_byte_on_disk_is_counted(tmp_path, per_class, num_tasks, largest):
    generator = np.random.default_rng(0)
    memory = SemiParametricMemory(RawCodec())
    memory.set_classes([f"class {index}" for index in range(len(per_class))], statistics_bytes=0)
    labels = np.repeat(np.arange(len(per_class)), per_class)
    for task in range(num_tasks):
        part = labels[labels % num_tasks == task]
        memory.write([bytes(size) for size in generator.integers(50, largest + 1, len(part))], part, task)
    memory.save(tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk <= memory.num_bytes.total <= 1.5 * on_disk + 2048


def test_every_byte_of_webp_codes_is_counted(tmp_path):
    for per_class in [(1,), (5, 5), (40,) * 25]:
        memory = filled(per_class=per_class, codec=WebPCodec())
        memory.save(tmp_path)
        on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
        counted = memory.num_bytes.total - memory.num_bytes.statistics
        assert on_disk <= counted <= 1.15 * on_disk + 2048


def test_num_bytes_adds_up():
    parts = MemoryBytes(codes=1, index=2, codec=3, statistics=4, masks=5)
    assert parts.total == 15
    assert parts.to_dict() == {"codes": 1, "index": 2, "codec": 3, "statistics": 4, "masks": 5, "total": 15}
    memory = filled()
    assert memory.num_bytes.codes == 15 * (5 + 192 + 2)
    assert memory.num_bytes.statistics == 100


def test_a_budget_too_small_for_one_code_per_class_changes_nothing():
    memory = filled(budget=20_000)
    before = memory.num_bytes, memory.labels.copy(), list(memory.classes)
    memory.set_classes([*memory.classes, "new"], statistics_bytes=100)
    with pytest.raises(ValueError, match="`memory_budget` must hold at least one code per class"):
        memory.write([bytes(50_000)], [3], task=1)
    assert memory.num_bytes.codes == before[0].codes
    assert np.array_equal(memory.labels, before[1])
    with pytest.raises(ValueError, match="memory_budget"):
        memory.set_classes([*memory.classes, "newer"], statistics_bytes=30_000)
    assert memory.classes == [*before[2], "new"]


def test_a_class_keeps_its_smallest_code_if_its_first_does_not_fit():
    memory = SemiParametricMemory(RawCodec(), None, ["a", "b"])
    codes = [bytes([index]) * size for index, size in enumerate([900, 20, 900, 900, 30, 900])]
    memory.budget = memory.num_bytes.total + 20 + 30 + 2 * INDEX_BYTES
    memory.write(codes, [0, 0, 0, 1, 1, 1], task=0)
    assert memory.labels.tolist() == [0, 1]
    assert memory.num_bytes.total == memory.budget


def test_a_smaller_budget_drops_codes_and_one_too_small_changes_nothing():
    memory = filled()
    memory.set_budget(memory.num_bytes.total - 400)
    assert len(memory) == 13
    with pytest.raises(ValueError, match="memory_budget"):
        memory.set_budget(500)
    assert len(memory) == 13
    memory.set_budget(None)
    assert memory.budget is None


def test_what_is_kept_does_not_depend_on_the_order_of_writing():
    codes, labels = RawCodec().encode(images_of(30)), np.arange(30) % 3
    kept = []
    for order in (np.arange(30), np.arange(30)[::-1]):
        memory = SemiParametricMemory(RawCodec(), 8_000, ["a", "b", "c"])
        memory.write([codes[index] for index in order], labels[order], task=0)
        kept.append(memory.read(np.arange(len(memory)))[0])
    assert 3 <= len(kept[0]) < 30
    assert torch.equal(*kept)


def content(memory):
    """Return label, task and first byte of every code, in the order of the memory."""
    codes = memory.codes(np.arange(len(memory)))
    return [
        (int(label), int(task), code[0]) for label, task, code in zip(memory.labels, memory.tasks, codes, strict=True)
    ]


def ranked(budget=None):
    """Return a memory of two classes, class 0 in the tasks 1 and 4, whose codes begin with their ranks."""
    memory = SemiParametricMemory(RawCodec(), budget, ["a", "b"])
    for task, labels, ranks in [(4, [0, 0, 0, 1, 1], [2, 0, 1, 1, 0]), (1, [0, 0, 0, 0], [3, 1, 2, 0])]:
        memory.write([bytes([rank] * 50) for rank in ranks], labels, task, ranks)
    return memory


def test_codes_stand_by_their_ranks_and_tasks_take_turns():
    turns = [(1, 0), (4, 0), (1, 1), (4, 1), (1, 2), (4, 2), (1, 3)]
    assert content(ranked()) == [*((0, *turn) for turn in turns), (1, 4, 0), (1, 4, 1)]


@pytest.mark.parametrize("num_codes", range(2, 9))
def test_ranks_survive_saving_and_shrinking_in_any_order(tmp_path, num_codes):
    whole = ranked()
    budget = whole.num_bytes.total - (50 + INDEX_BYTES) * (9 - num_codes)
    small = ranked(budget)
    assert len(small) == num_codes
    whole.save(tmp_path / "whole")
    loaded = SemiParametricMemory.load(tmp_path / "whole")
    assert content(loaded) == content(whole)
    loaded.set_budget(budget)
    loaded.save(tmp_path / "small")
    again = SemiParametricMemory.load(tmp_path / "small")
    assert set(content(again)) <= set(content(whole))
    assert np.bincount(again.labels).min() >= min(2, num_codes // 2)
    for memory in (loaded, again):
        memory.set_budget(None)
        memory.write([bytes([9] * 50)] * 3, [0] * 3, 7, range(3))
    assert content(loaded) == content(again)
    assert again.checksum() == loaded.checksum()


def test_a_task_that_comes_later_gets_as_many_codes_of_a_class_as_an_earlier_one():
    memory = SemiParametricMemory(RawCodec(), None, ["a"])
    memory.budget = memory.num_bytes.total + 20 * (50 + INDEX_BYTES)
    for task in range(4):
        memory.write([bytes([index] * 50) for index in range(100)], [0] * 100, task)
    assert np.bincount(memory.tasks).tolist() == [5] * 4


def test_a_table_with_tasks_out_of_turn_is_no_memory(tmp_path):
    ranked().save(tmp_path)
    files = MemoryFiles.read(tmp_path)
    replace(files, table=files.table.take(np.asarray([1, 0, *range(2, 9)]))).write(tmp_path)
    with pytest.raises(ValueError, match="in turns of its tasks"):
        SemiParametricMemory.load(tmp_path)


def test_a_rank_for_every_code_is_expected():
    with pytest.raises(ValueError, match="Expected one rank per code"):
        SemiParametricMemory(RawCodec(), None, ["a"]).write([b"x", b"y"], [0, 0], 0, ranks=[0])


def test_read_gives_the_images_and_labels_that_were_written():
    images = images_of(4)
    memory = SemiParametricMemory(RawCodec(), None, ["a", "b"])
    memory.write(memory.codec.encode(images), [1, 0, 1, 0], task=3)
    decoded, labels = memory.read(np.arange(4))
    assert labels.tolist() == [0, 0, 1, 1]
    assert {image.numpy().tobytes() for image in decoded[:2]} == {images[i].numpy().tobytes() for i in (1, 3)}
    assert memory.tasks.tolist() == [3, 3, 3, 3]


def test_draws_take_turns_over_classes_and_give_all_memories_before_one_comes_again():
    memory = filled(per_class=(1, 10, 100))
    drawn = memory.balanced_sampler().draw(330, (7, 0))
    assert all(set(memory.labels[turn]) == {0, 1, 2} for turn in drawn.reshape(-1, 3))
    for label, count in enumerate((1, 10, 100)):
        of_class = drawn[memory.labels[drawn] == label]
        passes = of_class[: len(of_class) // count * count].reshape(-1, count)
        assert all(set(one) == set(np.flatnonzero(memory.labels == label)) for one in passes)
    assert len({tuple(turn) for turn in memory.labels[drawn].reshape(-1, 3)}) == 6
    assert not np.array_equal(drawn, memory.balanced_sampler().draw(330, (7, 1)))


def test_draws_can_be_gone_on_with_anywhere():
    memory = filled(per_class=(1, 10, 100))
    whole = memory.balanced_sampler().draw(330, (7,))
    assert np.array_equal(whole[123:200], memory.balanced_sampler().draw(77, (7,), start=123))
    one = memory.balanced_sampler(np.flatnonzero(memory.labels == 1))
    assert set(memory.labels[one.draw(50, (7,))]) == {1}


@pytest.mark.parametrize("codec", [RawCodec(), WebPCodec(quality=30)])
def test_save_and_load_gives_back_everything(tmp_path, codec):
    memory = filled(budget=50_000, codec=codec)
    memory.save(tmp_path)
    loaded = SemiParametricMemory.load(tmp_path)
    assert loaded.classes == memory.classes
    assert loaded.budget == memory.budget
    assert loaded.num_bytes == memory.num_bytes
    assert loaded.codec.settings() == codec.settings()
    for first, second in zip(memory.read(np.arange(15)), loaded.read(np.arange(15)), strict=True):
        assert torch.equal(first, second)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "codes.parquet").read_bytes() == (tmp_path / "codes.parquet").read_bytes()


def test_a_loaded_memory_goes_on_as_if_it_had_never_been_saved(tmp_path):
    memories = [filled(budget=6_000), filled(budget=6_000)]
    memories[1].save(tmp_path)
    memories[1] = SemiParametricMemory.load(tmp_path)
    for memory in memories:
        memory.set_classes([*memory.classes, "new"], statistics_bytes=200)
        memory.write(memory.codec.encode(images_of(9, seed=1)), [3] * 9, task=1)
    assert torch.equal(
        memories[0].read(np.arange(len(memories[0])))[0], memories[1].read(np.arange(len(memories[1])))[0]
    )


def test_datasets_opens_the_file_with_label_names(tmp_path):
    filled().save(tmp_path)
    table = load_dataset("parquet", data_files=str(tmp_path / "codes.parquet"), split="train", cache_dir=str(tmp_path))
    assert table.column_names == ["code", "label", "task"]
    assert table.features["label"].names == ["class 0", "class 1", "class 2"]
    assert len(table) == 15


def test_a_label_without_a_class_is_refused():
    with pytest.raises(ValueError, match="Add the classes first"):
        SemiParametricMemory(RawCodec(), None, ["a"]).write([b"x"], [1], task=0)


def test_a_corrupt_code_is_a_codec_error():
    memory = SemiParametricMemory(WebPCodec(), None, ["a"])
    memory.write([b"no image"], [0], task=0)
    with pytest.raises(CodecError):
        memory.read([0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "codes.parquet").unlink(),
        lambda folder: (folder / "codes.parquet").write_bytes((folder / "codes.parquet").read_bytes()[:200]),
        lambda folder: (folder / "codes.parquet").write_bytes((folder / "codes.parquet").read_bytes() + b"x"),
        lambda folder: (folder / "memory.json").write_text("{"),
        lambda folder: (folder / "memory.json").write_text("[]"),
        lambda folder: (folder / "memory.json").write_text(json.dumps({"codec": "raw"})),
        lambda folder: (folder / "memory.json").write_text(
            json.dumps({"codec": "../x", "settings": {}, "budget": 1, "statistics_bytes": 0})
        ),
    ],
)
def test_files_that_hold_no_memory_are_one_clear_error(tmp_path, damage):
    filled().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match="Expected a memory in"):
        SemiParametricMemory.load(tmp_path)


@pytest.mark.parametrize("classes", [["b", "a", "c"], ["a"], ["a", "c", "b"], []])
def test_the_order_of_classes_is_that_of_the_model(classes):
    memory = SemiParametricMemory(RawCodec(), None, ["a", "b"])
    with pytest.raises(ValueError, match=r"in their order, then new ones, .*Pass `model.config.classes`"):
        memory.set_classes(classes, statistics_bytes=7)
    assert memory.classes == ["a", "b"]
    assert memory.statistics_bytes == 0
    memory.set_classes(("a", "b", "c"), statistics_bytes=7)
    assert memory.classes == ["a", "b", "c"]
