"""WakeSleepConfig."""

import pytest
from transformers import AutoConfig, ViTConfig

from hf_wakesleep import WakeSleepConfig


def test_a_new_config_has_no_class():
    config = WakeSleepConfig()
    assert config.classes == []
    assert config.num_labels == 0


def test_classes_keep_the_order_of_learning_through_save_and_load(tmp_path):
    config = WakeSleepConfig(backbone_config=ViTConfig(hidden_size=32), lda_weight=0.25, lda_shrinkage=0.5)
    config.add_classes(["zebra", "ape"])
    config.add_classes(["cat"])
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, WakeSleepConfig)
    assert loaded.classes == ["zebra", "ape", "cat"]
    assert loaded.label2id == {"zebra": 0, "ape": 1, "cat": 2}
    assert loaded.backbone_config.hidden_size == 32
    assert (loaded.lda_weight, loaded.lda_shrinkage) == (0.25, 0.5)
    assert WakeSleepConfig().lda_shrinkage is None


def test_classes_that_look_like_the_defaults_of_transformers_survive(tmp_path):
    config = WakeSleepConfig()
    config.add_classes(["LABEL_0", "LABEL_1"])
    config.save_pretrained(tmp_path)
    assert WakeSleepConfig.from_pretrained(tmp_path).classes == ["LABEL_0", "LABEL_1"]


def test_more_than_ten_classes_stay_in_order(tmp_path):
    config = WakeSleepConfig()
    names = [f"class {index}" for index in range(123)]
    config.add_classes(names)
    config.save_pretrained(tmp_path)
    assert WakeSleepConfig.from_pretrained(tmp_path).classes == names


@pytest.mark.parametrize("names", [["cat"], ["dog", "dog"]])
def test_a_class_that_comes_again_is_refused_and_nothing_changes(names):
    config = WakeSleepConfig()
    config.add_classes(["cat"])
    with pytest.raises(ValueError, match="are known already or come twice"):
        config.add_classes(names)
    assert config.classes == ["cat"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", "max"),
        ("classifier", "svm"),
        ("lda_weight", 1.5),
        ("lda_shrinkage", 0.0),
        ("image_size", 0),
        ("image_std", [0.5, 0.5, 0.0]),
        ("image_mean", [0.5]),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        WakeSleepConfig(**{field: value})
