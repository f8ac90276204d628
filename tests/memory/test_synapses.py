"""Synapses: what is frozen stays bit-identical, is saved at one bit an entry, and is refused if damaged."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from conftest import NAMES
from process_group import run
from runs import STEP_ASLEEP, StopAt, StopError, assert_same_end, stop_at
from safetensors.torch import save_file
from transformers import Adafactor

from hf_wakesleep import (
    ContinualTrainer,
    SemiParametricMemory,
    Synapses,
    WakeSleepForImageClassification,
    consolidate,
)
from hf_wakesleep.learning.distributed import check_unsharded
from hf_wakesleep.memory.synapses import FrozenEntries, count_entries, count_entries_by_part, network_part
from hf_wakesleep.model.digests_wakesleep import write_digests
from hf_wakesleep.reporting.plots import plot_synapses
from hf_wakesleep.stages.checkpoint import find_checkpoints

FREEZING = {"freeze_fraction": 0.3}


@pytest.fixture
def model(make_model):
    model = make_model()
    model.grow(NAMES[:3], torch.Generator().manual_seed(0))
    return model


def some(model, seed=0) -> Synapses:
    """Return synapses of a model of which about a third is frozen."""
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in model.named_parameters()}
    return Synapses.unfrozen(count_entries(model)).freeze(masks)


def assert_kept(synapses, before, after):
    """Assert that frozen entries are bit-identical in two models, and that others are not."""
    before = copy.deepcopy(before).cpu()
    masks, changed = synapses.masks(before), 0
    after = dict(copy.deepcopy(after).cpu().named_parameters())
    for name, value in before.named_parameters():
        now, mask = after[name][tuple(slice(size) for size in value.shape)], masks[name]
        assert torch.equal(now[mask].view(torch.int32), value[mask].view(torch.int32)), name
        changed += int((now[~mask] != value[~mask]).sum())
    assert any(mask.any() for mask in masks.values())
    assert changed > 1000


def test_save_and_load_gives_back_every_mask_and_the_bytes_are_those_of_the_file(model, tmp_path):
    synapses = some(model)
    synapses.save(tmp_path / "s.safetensors")
    loaded = Synapses.load(tmp_path / "s.safetensors")
    loaded.check(model)
    masks = synapses.masks(model)
    assert all(torch.equal(mask, masks[name]) for name, mask in loaded.masks(model).items())
    assert loaded.num_bytes == (tmp_path / "s.safetensors").stat().st_size
    assert loaded.checksum() == synapses.checksum() != some(model, seed=1).checksum()
    share, parts = loaded.frozen_shares(model)
    assert share == pytest.approx(sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()))
    head = [mask.flatten() for name, mask in masks.items() if name.startswith("head")]
    assert parts["head"] == pytest.approx(torch.cat(head).float().mean().item())


@pytest.mark.parametrize("name", ["backbone.layers.11.mlp.fc1.weight", "backbone.timm_model.blocks.11.norm1.bias"])
def test_a_block_is_a_part(name):
    assert network_part(name).endswith(".11")
    assert [network_part(name) for name in ("backbone.pooler.dense.bias", "head.classifier.bias")] == [
        "backbone.pooler",
        "head",
    ]


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_new_classes_are_free_and_old_ones_stay_frozen(make_model, classifier):
    model = make_model(classifier=classifier)
    model.grow(["a", "b", "c"])
    before, synapses = copy.deepcopy(model), some(model)
    entries = count_entries(model, num_new=2)
    model.grow(["d", "e"])
    assert entries == count_entries(model)
    grown = synapses.grow(entries)
    grown.check(model)
    old, new = (one.masks(of)["head.classifier.weight"] for one, of in ((synapses, before), (grown, model)))
    assert torch.equal(new[:3], old)
    assert not new[3:].any()


DAMAGES = {
    "missing": lambda bits: bits.pop("head.classifier.bias"),
    "unknown": lambda bits: bits.update(other=torch.zeros(1, dtype=torch.uint8)),
    "long": lambda bits: bits.update({"head.classifier.bias": torch.zeros(2, dtype=torch.uint8)}),
    "padding": lambda bits: bits["head.classifier.bias"].__ior__(0b00010000),  # of three classes
    "numbers": lambda bits: bits.update({"head.classifier.bias": torch.zeros(1)}),
    "rows": lambda bits: bits.update({"head.classifier.bias": torch.zeros(1, 1, dtype=torch.uint8)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_masks_of_another_network_are_refused(model, tmp_path, damage):
    bits = Synapses.unfrozen(count_entries(model)).bits
    DAMAGES[damage](bits)
    save_file(bits, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="xpected"):
        Synapses.load(tmp_path / "s.safetensors").check(model)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\x01", lambda data: b""])
def test_a_damaged_file_of_a_memory_is_one_clear_error(asleep, tmp_path, damage):
    model, memory, _ = asleep
    memory.set_synapses(some(model))
    memory.save(tmp_path)
    assert SemiParametricMemory.load(tmp_path).num_bytes == memory.num_bytes
    assert memory.num_bytes.masks == (tmp_path / "synapses.safetensors").stat().st_size
    (tmp_path / "synapses.safetensors").write_bytes(damage((tmp_path / "synapses.safetensors").read_bytes()))
    with pytest.raises(ValueError, match="Expected a memory in"):
        SemiParametricMemory.load(tmp_path)


def test_masks_take_their_bytes_from_the_codes(asleep):
    model, memory, _ = asleep
    memory.set_budget(memory.num_bytes.total)
    before = len(memory)
    memory.set_synapses(some(model))
    assert memory.num_bytes.total <= memory.budget
    assert len(memory) < before
    memory.set_budget(memory.num_bytes.total)
    with pytest.raises(ValueError, match="`memory_budget` must hold"):
        memory.set_synapses(Synapses.unfrozen({"a": 10**7}))
    assert memory.synapses.bits.keys() == count_entries(model).keys()


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adafactor": lambda parameters: Adafactor(parameters, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_moves_a_frozen_entry(model, name):
    synapses, before = some(model), copy.deepcopy(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    FrozenEntries(model, synapses).attach(optimizer)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, step - 0.5)
        optimizer.step()
    assert_kept(synapses, before, model)


def test_frozen_entries_take_no_part_in_the_norm_of_gradients(model):
    synapses = some(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    FrozenEntries(model, synapses).mask_gradients()
    free = sum(int((~mask).sum()) for mask in synapses.masks(model).values())
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() == pytest.approx(free**0.5, rel=1e-4)


def test_restore_puts_the_values_into_another_model(model):
    synapses, other = some(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    FrozenEntries(model, synapses).restore(other)
    assert_kept(synapses, model, other)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_each_sleep_freezes_more_and_moves_nothing_that_is_frozen(asleep, make_args, precision):
    model, memory, reader = asleep
    args = make_args(**FREEZING, weight_decay=0.1, max_grad_norm=0.1)
    never = make_args()
    accelerator = Accelerator(mixed_precision=precision)
    first = consolidate(model, memory, args.sleep_config(), reader=reader, accelerator=accelerator)
    before, synapses = copy.deepcopy(model), memory.synapses
    second = consolidate(model, memory, args.sleep_config(1), reader=reader, accelerator=accelerator)
    assert_kept(synapses, before, model)
    assert 0.2 < first.frozen_fraction <= 0.3
    assert first.frozen_fraction < second.frozen_fraction < 0.6
    assert all(isinstance(value, int | float) for value in second.scalars().values())
    assert second.scalars()["frozen/head"] == second.frozen["head"] >= first.frozen["head"]
    masks = memory.synapses.masks(model)
    assert all((masks[name] | ~mask).all() for name, mask in synapses.masks(model).items())
    third = consolidate(model, memory, never.sleep_config(2), reader=reader, accelerator=accelerator)
    assert third.frozen_fraction == second.frozen_fraction


def test_without_freezing_there_are_no_masks(asleep, make_args, tmp_path):
    model, memory, reader = asleep
    report = consolidate(model, memory, make_args().sleep_config(), reader=reader)
    assert (report.frozen_fraction, report.frozen, memory.synapses, memory.num_bytes.masks) == (0.0, {}, None, 0)
    memory.save(tmp_path)
    assert not (tmp_path / "synapses.safetensors").exists()


def load_stage(folder) -> tuple[WakeSleepForImageClassification, Synapses]:
    return WakeSleepForImageClassification.from_pretrained(folder), Synapses.load(
        folder / "memory" / "synapses.safetensors"
    )


LOOPS = {
    "AdamW": ({"weight_decay": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "bf16": True}, None),
    "SGD": ({"weight_decay": 0.1, "wake_replay": True}, (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_keeps_what_is_frozen_and_counts_every_byte(make_model, make_args, make_stream, tmp_path, loop):
    changes, optimizer = LOOPS[loop]
    args = make_args(**FREEZING, **changes, use_cpu=True, memory_budget="32KB", codec="raw")
    trainer = ContinualTrainer(make_model(), args, make_stream(), optimizer_cls_and_kwargs=optimizer)
    trainer.train()
    stages = [tmp_path / "out" / name for name in ("task-01", "task-02")]
    (before, synapses), (after, grown) = map(load_stage, stages)
    assert_kept(synapses, before, after)
    grown.check(after)
    for stage, record in zip(stages, trainer.history.records, strict=True):
        assert record.memory_bytes["masks"] == (stage / "memory" / "synapses.safetensors").stat().st_size
        assert record.memory_bytes["total"] <= 32_000
        assert (stage / "synapses.png").exists()
        assert f"| `head` | {record.sleep['frozen']['head']:.1%} |" in (stage / "README.md").read_text()
    assert record.memory_bytes["total"] > 31_000  # full
    assert (tmp_path / "out" / "synapses.png").exists()


def test_a_run_stopped_awake_and_asleep_ends_with_the_same_masks(make_trainer, monkeypatch):
    settings = {**FREEZING, "sleep_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole, stopped, resumed, again = (
        make_trainer(output_dir=name, **settings) for name in ("whole", "stopped", "stopped", "stopped")
    )
    whole.train()
    stopped.add_callback(StopAt(stopped, task=1, step=5))
    with pytest.raises(StopError):
        stopped.train()
    monkeypatch.setattr(*STEP_ASLEEP, stop_at(6, getattr(*STEP_ASLEEP)))
    with pytest.raises(RuntimeError):
        resumed.train(resume_from_checkpoint=True)
    assert find_checkpoints(resumed.checkpoints_folder)[-1].name == "checkpoint-11"
    monkeypatch.undo()
    again.train(resume_from_checkpoint=True)
    assert_same_end(whole, again)
    assert whole.memory.checksum() == again.memory.checksum()


def test_a_stage_keeps_what_is_frozen_and_is_refused_with_masks_of_another(make_trainer, tmp_path):
    make_trainer(output_dir="whole", **FREEZING).train()
    before, synapses = load_stage(tmp_path / "whole" / "task-01")
    continued = make_trainer(output_dir="next", model=copy.deepcopy(before))
    continued.train()
    assert_kept(synapses, before, continued.model)
    assert continued.memory.synapses.checksum() == synapses.grow(count_entries(continued.model)).checksum()
    stage = tmp_path / "whole" / "task-01"
    memory = SemiParametricMemory.from_pretrained(str(stage))
    memory.synapses = Synapses.unfrozen({"other": 8})
    memory.save(stage / "memory")
    write_digests(stage)
    with pytest.raises(ValueError, match="Expected masks of"):
        make_trainer(output_dir="refused", model=WakeSleepForImageClassification.from_pretrained(stage))


def test_two_processes_freeze_the_same(tmp_path):
    both = run(tmp_path / "two", 2, **FREEZING, per_device_train_batch_size=16)
    assert both[0] == both[1]
    (before, synapses), (after, _) = (load_stage(tmp_path / "two" / name) for name in ("task-01", "task-02"))
    assert_kept(synapses, before, after)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_model_in_shards_cannot_be_frozen(kind):
    with pytest.raises(ValueError, match="Expected a full model on every process"):
        check_unsharded(SimpleNamespace(distributed_type=kind))
    check_unsharded(SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))


def test_every_row_of_the_picture_has_its_own_number(model):
    _, parts = some(model).frozen_shares(model)
    entries = count_entries_by_part(model)
    assert sum(entries.values()) == sum(count_entries(model).values())
    shown = [text.get_text() for text in plot_synapses(parts, entries).axes[0].texts]
    assert len(set(shown)) == len(parts) == len(shown)
    head = sum(int(mask.sum()) for name, mask in some(model).masks(model).items() if name.startswith("head"))
    assert shown[list(parts).index("head")] == f"{100 * head / 99:.2f} ({head} of 99)"
