"""The model card: what it says, what it never says, and that it parses back."""

import ast
import json
import math
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from paths import ROOT

import hf_wakesleep
from hf_wakesleep import ContinualTrainingArguments, History, RawCodec, SemiParametricMemory, WebPCodec
from hf_wakesleep.learning.settings import hyper_parameters
from hf_wakesleep.reporting.card import CardFacts, collect_facts, render_model_card
from hf_wakesleep.reporting.task_record import TaskRecord

ODD_NAMES = [
    "no",
    "1e3",
    ": {",
    "a|b",
    'a "quoted" name',
    "`tick`",
    "two\nlines\n---\nmore",
    "naïve 猫 🐈",
    "<b>&amp;",
    "a\\|b",
]
DATASET = {"name": "uoft-cs/cifar100", "revision": "0123abc"}


def make_history(class_lists, accuracy=None, **stream) -> History:
    """Return a history in which task t brings the t-th list of classes; accuracies fall with the age of a task."""
    records = [
        TaskRecord(
            name=f"task-{number:02d}",
            classes=list(classes),
            new_classes=list(classes),
            num_train_images=100,
            num_eval_images=20,
            accuracy=[0.9 - 0.1 * (number - task) / len(class_lists) for task in range(1, number + 1)],
            before_accuracy=0.6 if number > 1 else math.nan,
            untrained_accuracy=0.5 if number > 1 else math.nan,
            memory_bytes={"codes": 9000, "index": 800, "codec": 0, "statistics": 700, "masks": 0, "total": 10500},
            num_codes=2 * number,
            lda_weight=0.25,
            wake_images=200,
            wake_seconds=1.5,
            sleep_images=320,
            sleep_seconds=2.5,
            sleep={"steps": 20, "loss": 0.5, "held_out_accuracy": math.nan},
        )
        for number, classes in enumerate(class_lists, start=1)
    ]
    if accuracy is not None:
        records[-1].accuracy = list(accuracy)
    tasks = [{"name": record.name} for record in records]
    protocol = {"seed": 7, "stream": {"kind": "class-incremental", "seed": 1993, "tasks": tasks, **stream}}
    return History(protocol, {}, records)


@pytest.fixture
def make_facts(make_model):
    """Return a function that collects facts of a model that learned some lists of classes, two codes per class."""

    def build(class_lists=(["cat", "dog"], ["owl"], ["maple_tree"]), codec=None, args=None, **kwargs) -> CardFacts:
        history = make_history(class_lists, **kwargs)
        model = make_model()
        model.grow(history.classes)
        memory = SemiParametricMemory(codec or WebPCodec(), 20_000_000, history.classes)
        labels = np.repeat(np.arange(len(history.classes)), 2)
        memory.write([str(row).encode() for row in range(len(labels))], labels, task=0)
        return collect_facts(model, history, memory, None if args is None else hyper_parameters(args), "me/animals")

    return build


def tables(card: str) -> list[list[list[str]]]:
    """Return the cells of every table in a card."""
    found = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    return [[re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in table.splitlines()] for table in found]


def test_the_card_says_how_far_the_covariance_of_lda_was_shrunk(make_model):
    model = make_model()
    model.grow(["cat", "dog"])
    model.head.lda.update(torch.randn(40, model.head.feature_dim), torch.arange(40) % 2)
    card = render_model_card(collect_facts(model, make_history([["cat", "dog"]])))
    assert f"mixed with LDA at weight 0.50, its covariance shrunk by {model.head.lda.find_shrinkage():.2f}." in card


def test_the_card_says_what_was_learned_how_well_and_how(make_facts, make_args):
    card = render_model_card(make_facts(args=make_args(sleep_steps=33), dataset=DATASET))
    assert "# animals, stage task-03" in card
    assert "**4 classes**" in card
    assert "**3 tasks**" in card
    assert "| task-01 | `cat`, `dog` | 100 | 20 |" in card
    assert "| task-02 | 86.7% | 90.0% | | 88.3% | 88.3% |" in card
    assert "| forgetting | 5.0% |" in card
    assert "| forward transfer | 10.0% |" in card
    assert "| bytes | 0 | 9,000 | 800 | 0 | 700 | 10,500 |" in card
    for fact in ("8 of the 300", "2 to 2 per class", "20,000,000 bytes", "`webp`", "`quality=50`", "seed 1993"):
        assert fact in card
    assert "| task-03 | 200 | 1.5 | 20 | 320 | 2.5 | 0.5000 | – | 0.25 |" in card
    assert "`sleep_steps=33`" in card
    assert "[uoft-cs/cifar100](https://huggingface.co/datasets/uoft-cs/cifar100), revision `0123abc`" in card
    assert "](history.png)" in card
    assert "hf_wakesleep " + hf_wakesleep.__version__ in card


def test_it_parses_back_with_one_result_per_task_and_the_averages(make_facts):
    card = render_model_card(make_facts(dataset=DATASET))
    parsed = ModelCard(card)
    data = parsed.data
    assert str(parsed) == card
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "hf_wakesleep",
        "apache-2.0",
        "image-classification",
    )
    assert {"continual-learning", "class-incremental-learning", "transformers"} <= set(data.tags)
    assert (data.datasets, data.base_model, data.metrics) == (["uoft-cs/cifar100"], None, ["accuracy"])
    assert data.model_name == "animals"
    results = [(result.dataset_config, result.metric_type, result.metric_value) for result in data.eval_results]
    assert results == [
        ("task-01", "accuracy", 0.8333),
        ("task-02", "accuracy", 0.8667),
        ("task-03", "accuracy", 0.9),
        ("all-tasks", "accuracy", 0.8667),
        ("all-tasks", "accuracy", 0.8667),
        ("all-tasks", "accuracy", 0.8833),
        ("all-tasks", "forgetting", 0.05),
    ]
    assert {result.dataset_revision for result in data.eval_results} == {"0123abc"}
    assert len({result.dataset_name for result in data.eval_results}) == 4


def test_the_same_facts_give_the_same_bytes_also_through_json(make_facts, make_args):
    facts = make_facts(args=make_args())
    card = render_model_card(facts)
    assert render_model_card(facts) == card
    for options in ({}, {"sort_keys": True}):
        again = CardFacts.from_dict(json.loads(json.dumps(facts.to_dict(), allow_nan=False, **options)))
        assert render_model_card(again) == card


def test_facts_with_wrong_keys_are_one_clear_error(make_facts):
    content = make_facts().to_dict()
    with pytest.raises(ValueError, match=r"\['model'\] are missing and \['modell'\] are unknown"):
        CardFacts.from_dict({"modell" if key == "model" else key: value for key, value in content.items()})
    del content["license"]
    assert CardFacts.from_dict(content).license == "apache-2.0"


def test_a_fact_that_the_template_misses_is_an_error(make_facts):
    facts = make_facts()
    for part, key in (("model", "image_size"), ("memory", "budget"), ("versions", "hf_wakesleep")):
        content = dict(getattr(facts, part))
        del content[key]
        with pytest.raises(UndefinedError, match=key):
            render_model_card(replace(facts, **{part: content}))


def test_what_is_unknown_is_a_dash_and_no_result(make_facts):
    facts = make_facts(accuracy=[math.nan, np.float64(0.85), 0.9])
    card = render_model_card(facts)
    assert not re.search(r"\b(nan|NaN|None|null)\b", card)
    assert "| task-03 | – | 85.0% | 90.0% | 87.5% | 87.5% |" in card
    assert [result.dataset_config for result in ModelCard(card).data.eval_results] == ["task-02", "task-03"]
    raw = facts.to_dict()
    raw["history"]["accuracy_matrix"][-1][0] = raw["history"]["records"][-1]["accuracy"][0] = math.nan
    assert render_model_card(CardFacts.from_dict(raw)) == card


def test_where_no_accuracy_is_known_none_is_claimed(make_facts):
    card = render_model_card(make_facts([["cat"]], accuracy=[math.nan]))
    assert "| task-01 | – | – | – |" in card
    assert ModelCard(card).data.eval_results is None
    assert "**unknown**" in card


def test_the_headline_says_for_how_many_classes_accuracy_is_unknown(make_facts):
    classes = [[f"class {number}" for number in range(25)], ["cat", "dog", "owl"]]
    card = render_model_card(make_facts(classes, accuracy=[math.nan, 1.0]))
    for fact in ("**28 classes**", "**2 tasks**", "**100.0% on 3 classes**", "**unknown for 25 of 28 classes**"):
        assert fact in card
    assert re.search(r"\| pooled accuracy \| 100.0% \| .*3 of 28 classes, 1 of 2 tasks \|", card)
    assert "forgetting **" not in card
    assert [result.dataset_config for result in ModelCard(card).data.eval_results] == ["task-02"]


def test_classes_without_evaluation_images_are_counted_within_tasks(make_facts):
    facts = make_facts([["cat", "dog"], ["owl"]])
    records = [{**record, "num_unevaluated": 1} for record in facts.history["records"]]
    card = render_model_card(replace(facts, history={**facts.history, "records": records}))
    assert "% on 2 classes**" in card
    assert "**unknown for 1 of 3 classes**" in card
    assert "all-tasks" not in {result.dataset_config for result in ModelCard(card).data.eval_results}


def test_domains_without_evaluation_images_are_counted_as_tasks(make_facts):
    facts = make_facts([["cat", "dog"], ["owl"]], accuracy=[math.nan, 0.5])
    records = [{**record, "num_unevaluated": 0} for record in facts.history["records"]]
    card = render_model_card(replace(facts, history={**facts.history, "records": records}))
    assert "**50.0%**" in card
    assert "**unknown for 1 of 2 tasks**" in card


def test_means_over_all_stages_need_all_of_them(make_facts):
    facts = make_facts([["cat"], ["dog"], ["owl"]])
    matrix = [[0.9], [math.nan, 0.8], [0.7, 0.6, 0.5]]
    card = render_model_card(replace(facts, history={**facts.history, "accuracy_matrix": matrix}))
    results = [(result.dataset_config, result.metric_name) for result in ModelCard(card).data.eval_results]
    assert results[3:] == [("all-tasks", "average accuracy"), ("all-tasks", "pooled accuracy")]


def test_no_zero_is_negative(make_facts):
    facts = make_facts(accuracy=[0.86667, 0.9, 0.9])
    history = {**facts.history, "forgetting": [0.0, 0.0, -1e-9]}
    assert "-0.0" not in render_model_card(replace(facts, history=history))


def test_odd_class_names_survive_in_yaml_and_break_no_table(make_facts):
    facts = make_facts([ODD_NAMES, ["plain"]])
    card = render_model_card(facts)
    results = ModelCard(card).data.eval_results
    assert results[0].dataset_args["classes"] == ODD_NAMES
    assert len(results) == 6
    assert str(ModelCard(card)) == card
    assert all(len({len(row) for row in table}) == 1 for table in tables(card))
    assert [len(table) for table in tables(card)] == [
        len(t) for t in tables(render_model_card(make_facts([["a"], ["b"]])))
    ]
    for shown in (
        "`no`, `1e3`, `: {`, a\\|b,",
        '`a "quoted" name`',
        "\\`tick\\`",
        "`two lines --- more`",
        "a\\\\\\|b",
    ):
        assert shown in card


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=4, unique=True))
def test_any_class_names_survive_in_yaml(names):
    history = make_history([names])
    model = {"classes": names, "backbone": None, "backbone_type": "vit", "backbone_revision": None, "feature_dim": 8}
    model |= {"num_parameters": 9, "image_size": 8, "image_mean": [0.5], "image_std": [0.5], "pooling": "cls"}
    model |= {"classifier": "linear", "lda_weight": 0.5}
    card = render_model_card(CardFacts(history.to_dict(), model, None, {}, {"hf_wakesleep": "1"}, None, None))
    assert ModelCard(card).data.eval_results[0].dataset_args["classes"] == names
    assert all(len({len(row) for row in table}) == 1 for table in tables(card))


def test_settings_are_what_differs_from_the_defaults(make_model, make_args):
    args = make_args(sleep_steps=33, lr_scheduler_type="cosine", logging_steps=3, adam_beta1=0.9, seed=5)
    assert hyper_parameters(args) == {
        "learning_rate": 3e-3,
        "wake_plasticity": "full",
        "sleep_steps": 33,
        "sleep_batch_size": 16,
        "backbone_learning_rate_ratio": 1.0,
        "seed": 5,
    }


HYPER_PARAMETERS = {"optim", "optim_args", "optim_target_modules", "lr_scheduler_type", "lr_scheduler_kwargs"}
HYPER_PARAMETERS |= {"metric_for_best_model", "train_sampling_strategy", *ContinualTrainingArguments.__annotations__}


@pytest.mark.parametrize("secret", ["alice", "hf_AliceToken", ["alice"]])
def test_no_field_of_text_but_hyper_parameters_is_a_setting(make_model, secret):
    values = {field.name: field.default for field in fields(ContinualTrainingArguments)}
    texts = {field.name for field in fields(ContinualTrainingArguments) if "str" in str(field.type)}
    assert {"output_dir", "hub_token", "hub_model_id", "run_name", "trackio_space_id", "report_to"} <= texts
    args = SimpleNamespace(**{**values, **dict.fromkeys(texts - HYPER_PARAMETERS, secret)})
    assert not set(hyper_parameters(args)) & texts


@pytest.mark.parametrize(
    "path", ["/home/alice/data", "C:\\Users\\alice", "~/data", ["out/data"], {"path": "out/data"}, None]
)
def test_no_path_is_a_setting(make_model, path):
    values = {field.name: path for field in fields(ContinualTrainingArguments)}
    settings = hyper_parameters(SimpleNamespace(**values))
    assert [value for value in settings.values() if value is not None] == []


@pytest.mark.parametrize("path", ["{}/my-vit", "C:\\Users\\alice\\my-vit", "./my-vit", "~/my-vit"])
def test_of_a_path_only_the_last_part_appears(make_model, make_args, tmp_path, path):
    args = make_args("alice", hub_model_id="alice/secret", hub_token="hf_AliceToken", run_name="alice-run")
    model = make_model()
    model.config.backbone_config._name_or_path = path.format(tmp_path)
    history = make_history([["cat"]], dataset={"name": str(tmp_path), "revision": None})
    facts = collect_facts(model, history, settings=hyper_parameters(args))
    card = render_model_card(facts)
    assert facts.model["backbone"] == "my-vit"
    assert facts.dataset is None
    assert ModelCard(card).data.base_model is None
    assert not re.search(rf"alice|Users|~|{tmp_path}", card, re.IGNORECASE)


def test_a_backbone_of_the_hub_is_the_base_model(make_model, monkeypatch, tmp_path):
    model = make_model(backbone_revision="abc123")
    model.config.backbone_config._name_or_path = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    card = render_model_card(collect_facts(model, make_history([["cat"]])))
    assert ModelCard(card).data.base_model == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert "`timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k`, revision `abc123`" in card
    (tmp_path / "timm" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert collect_facts(model, History()).model["backbone"] == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_one_task_is_one_row(make_facts):
    card = render_model_card(make_facts([["cat", "dog"]]))
    assert "**1 task**" in card
    assert "| after | 01 | mean | pooled |\n|---|---|---|---|\n| task-01 | 90.0% | 90.0% | 90.0% |" in card
    assert len(ModelCard(card).data.eval_results) == 5


def test_a_hundred_tasks_are_folded(make_facts):
    card = render_model_card(make_facts([[f"class {task}-{index}" for index in range(21)] for task in range(100)]))
    assert len(ModelCard(card).data.eval_results) == 104
    assert card.count("<summary>21 classes</summary>") == 100
    assert card.count("<summary>Show the table</summary>\n\n|") == 3
    assert card.count("<details>") == card.count("</details>") == 103
    assert "| task-100 |" in card
    assert all(len({len(row) for row in table}) == 1 for table in tables(card))


def test_the_privacy_statement_depends_on_the_codec(make_facts):
    statements = set()
    for codec in ("webp", "raw", "learned", "other"):
        facts = make_facts(codec=RawCodec() if codec == "raw" else None)
        card = render_model_card(replace(facts, memory={**facts.memory, "codec": codec}))
        (statement,) = re.findall(r"\*\*What codes show:\*\*.*", card)
        assert ("no pixels" in statement) == (codec == "learned")
        statements.add(statement)
    assert len(statements) == 4


def test_without_memory_the_card_says_so(make_facts):
    facts = make_facts()
    records = [{**record, "sleep": {}} for record in facts.history["records"]]
    card = render_model_card(replace(facts, memory=None, history={**facts.history, "records": records}))
    assert "No memory is kept." in card
    assert "the codes of" not in card
    assert "| task-01 | 200 | 1.5 | – | 320 | 2.5 | – | – | 0.25 |" in card


def test_a_model_without_history_has_a_card(make_model):
    model = make_model()
    assert "**0 classes**" in render_model_card(collect_facts(model, History()))
    model.grow(["cat", "dog"])
    card = render_model_card(collect_facts(model, History(), repo_id="me/animals"))
    assert "| `cat`, `dog` |" in card
    assert 'model="me/animals", trust_remote_code=True' in card
    assert ModelCard(card).data.eval_results is None
    assert "history.png" not in card


def test_tasks_from_elsewhere_are_not_called_the_dataset(make_facts):
    facts = make_facts(dataset={**DATASET, "revision": None}, tasks=[{"name": "task-01"}, {"name": "task-02"}])
    card = render_model_card(facts)
    assert "elsewhere" in card
    assert "revision `unknown`" in card
    assert {result.dataset_type for result in ModelCard(card).data.eval_results} == {"custom"}


def test_domains_are_named_and_tagged(make_facts):
    facts = make_facts([["cat"], ["dog"]], kind="domain-incremental", by="style")
    names = ["photo", "ske|tch"]
    records = [{**record, "name": name} for record, name in zip(facts.history["records"], names, strict=True)]
    records[1]["new_classes"] = []
    card = render_model_card(replace(facts, history={**facts.history, "records": records}))
    assert "| task-02: ske\\|tch | none | 100 | 20 |" in card
    assert "domain-incremental by `style`, 2 tasks" in card
    assert "domain-incremental-learning" in ModelCard(card).data.tags
    assert "DomainIncrementalStream(" in card


@pytest.mark.parametrize("repo_id", [None, "me/animals"])
@pytest.mark.parametrize("has_memory", [True, False])
def test_its_python_parses_and_uses_public_names(make_facts, repo_id, has_memory):
    facts = replace(make_facts(), repo_id=repo_id)
    card = render_model_card(facts if has_memory else replace(facts, memory=None))
    blocks = [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    assert len(blocks) == 2
    imports = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    used = {alias.name for node in imports if node.module == "hf_wakesleep" for alias in node.names}
    assert used <= set(hf_wakesleep.__all__)
    assert ('revision="task-03"' in card) == (repo_id is not None)


@pytest.mark.parametrize("path", sorted(ROOT.glob("model_cards/*/*.json")), ids=lambda p: p.stem)
def test_the_cards_of_the_reference_runs_are_what_their_facts_give(path):
    facts = CardFacts.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert render_model_card(facts).encode() == path.with_suffix(".md").read_bytes()
