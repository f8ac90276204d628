"""Plasticity: every weight that may learn is in one optimizer group."""

from hf_wakesleep.plasticity import parameter_groups, set_plasticity


def test_optimizer_groups_hold_every_trainable_weight_once(make_model):
    model = make_model()
    model.grow(["a", "b"])
    set_plasticity(model, "full")
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for group in groups} == {1.0, 0.25}
    assert all(
        (group["weight_decay"] > 0) == (parameter.ndim > 1) for group in groups for parameter in group["params"]
    )
    set_plasticity(model, "head")
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    assert sum(len(group["params"]) for group in groups) == len(list(model.head.parameters()))
