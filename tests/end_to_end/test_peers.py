"""The peers of examples/benchmarks/cil.py: their formulas against slow, obvious references, and a short run of all."""

import json
import sys
from collections import Counter
from dataclasses import replace

import cil
import cil_benchmarks
import cil_data
import cil_runs
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import digits_of
from datasets import ClassLabel, Dataset, Features, Image
from forked import run_example
from peers import PEERS, frozen, icarl, learner, rehearsal, slca, smc, store
from torch.nn import functional as F

pytestmark = pytest.mark.slow

RECIPE = learner.Recipe(
    learning_rate=3e-3,
    backbone_learning_rate=3e-3,
    weight_decay=0.05,
    label_smoothing=0.0,
    batch_size=12,
    augmentation="none",
    from_scratch=False,
    bf16=False,
    seed=0,
    budget=None,
    num_tasks=3,
    num_classes=6,
    random_features=40,
    webp_quality=50,
)


@pytest.fixture
def make_learner(make_model):
    """Return a function that builds a peer of any class on a small model."""

    def build(kind, **changes):
        return kind(make_model(), replace(RECIPE, **changes))

    return build


def pixels(count, seed=0, grey=False):
    drawn = torch.randint(0, 256, (count, 1 if grey else 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8).expand(-1, 3, -1, -1)


def clouds(classes, per_class=20, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = 3 * torch.randn(classes, width, generator=generator)
    return centres[labels] + torch.randn(len(labels), width, generator=generator), labels


def in_tasks(peer, features, labels, classes):
    """Show features to a peer in tasks of two classes, in the given order of classes."""
    for first in range(0, len(classes), 2):
        peer.begin([f"{name}" for name in classes[first : first + 2]])
        position = {name: index for index, name in enumerate(classes)}
        rows = torch.isin(labels, torch.tensor(classes[first : first + 2]))
        peer.update(features[rows], torch.tensor([position[int(label)] for label in labels[rows]]))


# Closed forms


def test_slda_of_one_class_is_the_batch_covariance(make_learner):
    features, _ = clouds(1, per_class=60)
    peer = make_learner(frozen.StreamingLDA)
    peer.means, peer.counts, peer.covariance = torch.zeros(1, 32), torch.zeros(1), torch.zeros(32, 32)
    for feature in features:
        peer.fit_one(feature, 0)
    assert torch.allclose(peer.means[0], features.mean(dim=0), atol=1e-5)
    assert torch.allclose(peer.covariance, torch.cov(features.T, correction=0), atol=1e-4)


def test_slda_follows_its_formula_and_comes_near_the_batch_over_tasks(make_learner):
    features, labels = clouds(6, per_class=80)
    peer = make_learner(frozen.StreamingLDA)
    in_tasks(peer, features, labels, list(range(6)))
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(6)])
    deviations = features - means[labels]
    within = deviations.T @ deviations / len(features)
    assert torch.allclose(peer.means, means, atol=1e-4)
    assert (peer.covariance - within).norm() < 0.25 * within.norm()
    precision = torch.linalg.inv((1 - 1e-4) * peer.covariance.double() + 1e-4 * torch.eye(32))
    slow = [
        [mean @ precision @ x - mean @ precision @ mean / 2 for mean in means.double()] for x in features[:5].double()
    ]
    assert torch.allclose(peer.scores(features[:5]), torch.tensor(slow), rtol=1e-3, atol=1e-2)


def test_ranpac_equals_joint_ridge_in_any_order_of_tasks(make_learner):
    features, labels = clouds(6)
    peer = make_learner(frozen.RanPAC)
    in_tasks(peer, features, labels, list(range(6)))
    hidden = (features @ peer.projection).relu().double()
    regular = hidden.T @ hidden + peer.ridge * torch.eye(40)
    joint = torch.linalg.solve(regular, hidden.T @ F.one_hot(labels, 6).double())
    assert torch.allclose(peer.scores(features), (hidden @ joint).float(), atol=1e-3)
    order = [4, 1, 0, 5, 3, 2]
    other = make_learner(frozen.RanPAC)
    in_tasks(other, features, labels, order)
    other.ridge = peer.ridge
    assert torch.allclose(other.scores(features), peer.scores(features)[:, order], atol=1e-3)


@pytest.mark.parametrize("num_rows", [30, 200])  # less and more than features
def test_the_ridge_is_that_of_the_smallest_held_out_error(num_rows):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(num_rows, 40, generator=generator).relu()
    targets = F.one_hot(torch.randint(3, (num_rows,), generator=generator), 3).float()
    cut, errors = int(0.8 * num_rows), []
    for ridge in frozen.RIDGES:
        fit = hidden[:cut].double()
        weights = torch.linalg.solve(fit.T @ fit + ridge * torch.eye(40), fit.T @ targets[:cut].double())
        errors.append((hidden[cut:].double() @ weights - targets[cut:]).square().mean())
    assert frozen.choose_ridge(hidden, targets) == float(frozen.RIDGES[int(torch.stack(errors).argmin())])


def test_ranpac_in_a_budget_takes_the_largest_width_that_fits(make_learner):
    for budget in (2_000, 5_000):
        peer = make_learner(frozen.RanPACInBudget, budget=budget)
        assert 4 * peer.width * (peer.width + 6) <= budget < 4 * (peer.width + 1) * (peer.width + 7)


def test_simplecil_is_cosine_to_class_means(make_learner):
    features, labels = clouds(4)
    peer = make_learner(frozen.SimpleCIL)
    in_tasks(peer, features, labels, list(range(4)))
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(4)])
    slow = F.cosine_similarity(features[:, None], means[None], dim=2)
    assert torch.allclose(peer.scores(features), slow, atol=1e-5)


def test_slca_describes_classes_and_normalises_logits(make_learner):
    features, labels = clouds(2, per_class=50)
    peer = make_learner(slca.SLCA)
    peer.begin(["a", "b"])
    peer.describe(features, labels)
    expected = torch.cov(features[labels == 1].T) + 1e-4 * torch.eye(32)
    assert torch.allclose(peer.factors[1] @ peer.factors[1].T, expected, atol=1e-3)
    assert peer.num_bytes == 4 * 2 * (32 + 32 * 32)
    drawn, drawn_labels = peer.samples()
    assert torch.allclose(drawn[drawn_labels == 0].mean(dim=0), peer.means[0], atol=0.5)
    logits = torch.tensor([[3.0, 4.0, 1.0]])
    assert torch.allclose(slca.normalised_logits(logits, [2, 1], 0.1), logits / 3 / 0.1, atol=1e-4)


# Memory


def test_herding_is_the_greedy_choice():
    features = F.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    chosen: list[int] = []
    for _ in range(12):
        left = [row for row in range(12) if row not in chosen]
        distances = [(features.mean(dim=0) - features[[*chosen, row]].mean(dim=0)).norm() for row in left]
        chosen.append(left[int(np.argmin(distances))])
    assert icarl.herding(features, 20).tolist() == chosen
    assert icarl.herding(features, 4).tolist() == chosen[:4]


def test_a_class_keeps_a_uniform_sample_whatever_the_order():
    hits = np.zeros(30)
    generator = torch.Generator().manual_seed(0)
    images, labels = pixels(30, grey=True).clone(), torch.zeros(30, dtype=torch.int64)
    images[:, :, 0, 0] = torch.arange(30, dtype=torch.uint8)[:, None]
    for _ in range(600):
        kept = store.ImageStore(10 * 66)
        for part in range(0, 30, 10):
            rows = slice(part, part + 10)
            kept.add(images[rows], labels[rows], torch.rand(10, generator=generator))
        assert len(kept) == 10
        hits[kept.images[:, 0, 0, 0].numpy()] += 1
    assert np.abs(hits / 600 - 1 / 3).max() < 0.08  # four standard deviations


def test_budgets_are_never_exceeded_and_classes_have_as_many_images():
    for budget in (100, 700, 3_000):
        kept = store.ImageStore(budget)
        for label, (count, is_grey) in enumerate([(9, False), (20, True), (5, False), (30, True)]):
            labels = torch.full((count,), label)
            keys = torch.rand(count, generator=torch.Generator().manual_seed(label))
            kept.add(pixels(count, label, is_grey), labels, keys, torch.randn(count, label + 1))
            pixel = sum(64 if bool((image[0] == image[1]).all()) else 192 for image in kept.images)
            assert kept.num_bytes == pixel + 2 * len(kept) + 4 * int((~kept.rows.isnan()).sum()) <= budget
        counts = kept.labels.bincount(minlength=4)
        assert counts.max() - counts.min() <= 1


def test_dark_loss_matches_the_logits_that_were_stored():
    logits = torch.tensor([[1.0, 2.0, 9.0], [0.0, 1.0, 2.0]])
    rows = torch.tensor([[0.0, 4.0, torch.nan], [0.0, 3.0, 2.0]])
    assert rehearsal.dark_loss(logits, rows).item() == pytest.approx((1 + 4 + 0 + 4 + 0) / 5)


def test_derpp_stores_the_logits_of_its_steps_and_adds_three_losses(make_learner):
    peer = make_learner(rehearsal.DarkReplay, budget=2_500)
    images, labels = pixels(20), torch.arange(20) % 2
    peer.begin(["a", "b"])
    peer.learn(images, labels, 60)
    assert 0 < peer.num_bytes <= 2_500
    assert peer.store.rows.shape == (len(peer.store), 2)
    peer.begin(["c"])
    peer.model.eval()
    state = peer.generator.get_state()
    loss = peer._memory_loss(4)
    peer.generator.set_state(state)
    one, two = (peer.store.draw(4, peer.generator) for _ in range(2))
    logits = peer.logits_of(peer.store.images)
    dark = (logits[one, :2] - peer.store.rows[one]).square().mean()
    expected = 0.1 * dark + 0.5 * F.cross_entropy(logits[two], peer.store.labels[two])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


# All of them


@pytest.mark.parametrize("name", sorted(set(PEERS) - {"joint"}))
def test_peers_see_as_many_images_and_keep_to_their_budget(make_learner, name):
    kind, budget = PEERS[name], 20_000
    peer = make_learner(kind, budget=budget, from_scratch=True, bf16=True)
    for task in range(3):
        peer.begin([f"{task}-{index}" for index in range(2)])
        labels = 2 * task + torch.arange(24) % 2
        peer.learn(pixels(24, seed=task), labels, 48)
        predicted = peer.predict(pixels(7, seed=9))
        assert predicted.shape == (7,)
        assert predicted.max() < 2 * (task + 1)
        assert peer.num_bytes <= budget or not kind.uses_budget
    trains_once = issubclass(kind, frozen.FrozenLearner)
    assert peer.images_seen == pytest.approx(48 if trains_once else 144, abs=12)


def test_costs_of_smc_grow_with_the_tasks(make_learner):
    peer = make_learner(smc.SMC)
    shares = []
    for _ in range(3):
        peer.begin([str(peer.task)])
        shares.append(peer.share(1000))
    assert shares[1] < shares[2]
    assert sum(shares) == pytest.approx(3000, abs=2)


def test_a_grid_is_run_once_and_reported(tmp_path, monkeypatch, capsys):
    command = ["benchmarks/cil.py", "--quiet", "--images_per_task", "96", "--output_dir", "out"]
    ours = ["--set", "sleep_steps=2", "num_train_epochs=1", "--name", "short"]
    done = run_example(*command, *ours, "--methods", "wakesleep", "slda", "--seeds", "1", cwd=tmp_path)
    assert (tmp_path / "out" / "cil.md").read_text().split("\n\n")[0] in done.stdout
    assert not (tmp_path / "out" / "stages").exists()
    more = ["--methods", "replay", "slda", "--budgets", "60KB", "100KB", "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", [*command, *more])
    monkeypatch.chdir(tmp_path)
    cil.main()
    printed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed[:5] == ["replay-60KB-1", "replay-100KB-1", "replay-60KB-2", "replay-100KB-2", "slda-any-2"]
    table = (tmp_path / "out" / "cil.md").read_text()
    assert sorted(line.count(" ± ") for line in table.splitlines()[2:6]) == [0, 6, 6, 6]
    record = json.loads((tmp_path / "out" / "runs" / "replay-60KB-1.json").read_text())
    assert len(record["pooled_accuracy"]) == len(record["images_per_task"]) == 5
    assert max(record["memory_bytes"]) <= record["budget_bytes"] == 60_000
    assert record["settings"]["seed"] == 1
    for path in (tmp_path / "out" / "runs").glob("*-100KB-1.json"):  # one of ours, one of a peer
        record = json.loads(path.read_text())
        by_class = np.reshape(list(record["class_accuracy"].values()), (5, 2))
        assert (by_class.min(axis=1) <= record["accuracy_matrix"][-1]).all()
        assert (by_class.max(axis=1) >= record["accuracy_matrix"][-1]).all()
    assert all((tmp_path / "out" / f"{name}.png").exists() for name in ("accuracy", "seconds", "budgets"))
    changed = cil_runs.Run(**{**record["run"], "images_per_task": 32})
    with pytest.raises(ValueError, match="holds another run: .'images_per_task'. differ"):
        cil.perform(changed, None, tmp_path / "out" / "runs")


def write_data(folder, data, test_data=None):
    """Write training and test images as the benchmarks read them."""
    folder.mkdir()
    data.to_parquet(folder / "train.parquet")
    (test_data or data).to_parquet(folder / "test.parquet")


def test_the_domains_of_a_benchmark_are_its_images_turned(tmp_path):
    data = digits_of(range(3), 8)  # two images of a class for each of four angles
    write_data(tmp_path / "fashion_mnist", data)
    stream = cil_data.load_stream(cil_benchmarks.BENCHMARKS["R"], tmp_path, seed=None, train_images=None)
    assert [task.name for task in stream] == ["0", "90", "180", "270"]
    assert [len(task.new_classes) for task in stream] == [3, 0, 0, 0]
    before, after = (np.asarray(dataset[0]["image"]) for dataset in (data.shard(4, 1, False), stream[1].eval_dataset))
    assert np.array_equal(after, np.rot90(before))


def test_the_domains_of_a_benchmark_are_its_images_in_other_looks(tmp_path):
    colours = np.arange(2 * 4 * 6 * 8 * 3).reshape(8, 6, 8, 3).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    write_data(tmp_path / "cifar10", Dataset.from_dict({"image": list(colours), "label": labels}, features=features))
    stream = cil_data.load_stream(cil_benchmarks.BENCHMARKS["PD"], tmp_path, seed=None, train_images=None)
    assert [task.name for task in stream] == ["grey", "inverted", "plain", "turned"]
    assert [len(task.new_classes) for task in stream] == [2, 0, 0, 0]
    shown = {task.name: [np.asarray(image) for image in task.eval_dataset["image"]] for task in stream}
    assert np.array_equal(shown["plain"], colours[[0, 4]])
    assert np.array_equal(shown["inverted"], 255 - colours[[2, 6]])
    assert np.array_equal(shown["turned"], colours[[3, 7], ::-1, ::-1])
    assert np.array_equal(
        shown["grey"], [np.asarray(PIL.Image.fromarray(colours[row]).convert("L")) for row in (1, 5)]
    )


def test_classes_of_an_unbalanced_benchmark_have_numbers_of_images_in_turn(tmp_path):
    write_data(tmp_path / "caltech101", digits_of(range(10), 12), digits_of(range(10), 3))
    stream = cil_data.load_stream(cil_benchmarks.BENCHMARKS["PU"], tmp_path, seed=None, train_images=None)
    counts = Counter(name for task in stream for name in np.asarray(task.train_dataset["label"]))
    assert [counts[label] for label in range(10)] == [12, 10, 5, 2, 12, 10, 5, 2, 12, 10]  # there are no more than 12
    assert {len(task.eval_dataset) for task in stream} == {3}
    stream = cil_data.load_stream(cil_benchmarks.BENCHMARKS["PU"], tmp_path, seed=None, train_images=4)
    assert {len(task.train_dataset) for task in stream} == {4}


def test_a_benchmark_limits_test_images_of_a_class(tmp_path):
    write_data(tmp_path / "cifar10", digits_of(range(10), 3), digits_of(range(10), 5))
    benchmark = replace(cil_benchmarks.BENCHMARKS["PC"], test_images=2)
    stream = cil_data.load_stream(benchmark, tmp_path, seed=None, train_images=None)
    assert [len(task.eval_dataset) for task in stream] == [4] * 5


def test_accuracy_by_class_counts_right_answers_and_leaves_out_classes_without_images():
    confusion = [[0, 0, 3], [0, 2, 1], [2, 1, 2]]
    assert cil_runs.class_accuracy_of(confusion, ["a", "b", "c"]) == {"a": 0.75, "c": 0.0}


def test_peers_that_need_new_classes_learn_no_domains(tmp_path):
    command = ["benchmarks/cil.py", "--benchmark", "R", "--methods", "icarl", "replay"]
    assert "icarl cannot learn tasks without new classes" in run_example(*command, cwd=tmp_path, succeeds=False).stderr
