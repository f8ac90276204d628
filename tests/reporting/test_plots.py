"""Pictures: `history.png` draws the numbers of a history, whatever it holds, and in the same time for long ones."""

import math

import numpy as np
import pytest
from histories import make_history
from matplotlib.colors import to_rgba
from PIL import Image

from hf_wakesleep import History
from hf_wakesleep.reporting.panels import UNKNOWN, class_label, size_label, task_label
from hf_wakesleep.reporting.plots import plot_history, plot_synapses, save_history_plot
from hf_wakesleep.reporting.task_record import TaskRecord

PARTS = {"codes": 600, "index": 100, "codec": 0, "statistics": 200, "masks": 100}


def long_history(num_tasks: int, num_classes: int, budget: int | None = None) -> History:
    """Return a history of tasks with equally many classes, all images of which are taken for the next class."""
    records = [
        TaskRecord(
            name=f"task-{number + 1:02d}",
            classes=[f"class {label}" for label in classes],
            new_classes=[f"class {label}" for label in classes],
            num_train_images=10,
            num_eval_images=10,
            accuracy=[0.5 + 0.5 * task / num_tasks for task in range(number + 1)],
            memory_bytes={part: size * (number + 1) for part, size in (PARTS | {"total": 1000}).items()},
        )
        for number, classes in enumerate(np.array_split(range(num_classes), num_tasks))
    ]
    confusion = [[label, (label + 1) % num_classes, 2] for label in range(num_classes)]
    return History({"memory": {"budget": budget}}, {}, records, {}, confusion)


def drawn(axes, kind: str) -> list:
    """Return the artists of a kind on axes."""
    return [artist for artist in axes.get_children() if type(artist).__name__ == kind]


def texts_of(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title] if text.get_text()]


def test_the_curves_hold_the_metrics_after_each_task():
    history = make_history()
    lines = plot_history(history).axes[0].lines
    for line, name in zip(lines, ("average_accuracy", "pooled_accuracy", "forgetting"), strict=True):
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_ydata() == pytest.approx([100 * history.summary(count)[name] for count in (1, 2, 3)])


def test_of_curves_that_coincide_all_are_seen():
    average, pooled, forgetting = plot_history(make_history(((1.0,), (1.0, 1.0)))).axes[0].lines
    assert np.array_equal(average.get_ydata(), pooled.get_ydata())
    assert average.get_zorder() <= pooled.get_zorder() <= forgetting.get_zorder()  # drawn in this order
    assert average.get_linewidth() > 2 * pooled.get_linewidth()
    assert average.get_markersize() > pooled.get_markersize() > forgetting.get_markersize()
    assert pooled.is_dashed() is False
    assert forgetting.is_dashed() is True
    assert len({line.get_color() for line in (average, pooled, forgetting)}) == 3


def test_the_accuracy_of_each_task_is_a_row_over_time():
    axes = plot_history(make_history(((0.9,), (0.7, 0.8)))).axes[1]
    (image,) = axes.images
    assert image.get_array().filled(math.nan) == pytest.approx(np.array([[90, 70], [math.nan, 80]]), nan_ok=True)
    assert {"90", "70", "80", "1: class 1", "2: class 2"} <= {text.get_text() for text in axes.texts}


def test_unknown_accuracy_differs_from_tasks_not_yet_learned():
    axes = plot_history(make_history(((0.9,), (math.nan, 0.8)))).axes[1]
    _, unknown = axes.images
    assert np.array_equal(~np.ma.getmaskarray(unknown.get_array()), [[False, True], [False, False]])
    assert unknown.to_rgba(1.0) == to_rgba(UNKNOWN)


def test_memory_is_stacked_by_kind_under_the_budget():
    axes = plot_history(long_history(2, 4, budget=4000)).axes[2]
    sizes = [patch.get_data().values - patch.get_data().baseline for patch in drawn(axes, "StepPatch")]
    assert np.array_equal(sizes, [[600, 1200], [100, 200], [200, 400], [100, 200]])  # the codec has no bytes
    assert {"codes 1.20 kB", "statistics 400 B", "budget"} <= {text.get_text() for text in axes.texts}
    assert 4000 in axes.lines[0].get_ydata()
    assert axes.get_ylim()[1] > 4000


def test_a_budget_far_above_memory_does_not_press_it_flat():
    axes = plot_history(long_history(2, 4, budget=10**9)).axes[2]
    assert axes.get_ylim()[1] < 5000
    assert "1.00 GB" in axes.get_title(loc="left")


def test_the_confusion_matrix_holds_shares_of_each_class():
    history = long_history(2, 4)
    history.confusion = [[0, 0, 3], [0, 2, 1], [1, 1, 5], [3, 0, 2]]
    axes = plot_history(history).axes[3]
    (image,) = axes.images
    none = [math.nan] * 4
    expected = np.array([[0.75, 0, 0.25, 0], [0, 1, 0, 0], none, [1, 0, 0, 0]])
    assert np.abs(image.get_array().filled(math.nan)) == pytest.approx(expected, nan_ok=True)
    right, wrong, unknown = image.to_rgba(image.get_array())[[0, 0, 2], [0, 2, 1]]
    assert right[2] > right[0]  # blue
    assert wrong[0] > wrong[2]  # orange
    assert tuple(unknown) == to_rgba(UNKNOWN)
    assert {"75", "25", "100", "task 1", "task 2"} <= {text.get_text() for text in axes.texts}


def test_the_classes_that_are_most_often_confused_are_named_as_far_as_there_is_room():
    history = long_history(2, 4)
    history.confusion = [[0, 0, 9], [0, 2, 1], [1, 3, 5], [2, 2, 9], [3, 0, 2], [3, 1, 1]]
    text = plot_history(history).axes[3].texts[-1].get_text()
    assert text.endswith(": class 1 → class 3 (5), class 3 → class 0 (2)")
    history.records[0].new_classes[:], history.records[1].new_classes[:] = ["a", "b"], ["c", "d"]
    text = plot_history(history).axes[3].texts[-1].get_text()
    assert text.endswith(": b → d (5), d → a (2), a → c (1)")


def test_many_classes_share_cells_of_a_confusion_matrix():
    axes = plot_history(long_history(4, 1000)).axes[3]
    matrix = np.abs(axes.images[0].get_array())
    assert matrix.shape == (200, 200)
    assert matrix[0, :2].tolist() == [0.8, 0.2]  # of 5 classes the last is taken for one of the next cell
    assert axes.get_xlim() == (-0.5, 999.5)


@pytest.mark.parametrize("num_classes", [10, 30, 31, 100])
def test_every_class_is_named_beside_and_below_in_letters_no_larger_than_its_cell(num_classes):
    axes = plot_history(long_history(5, num_classes)).axes[3]
    names = [text for text in axes.texts if text.get_text().startswith("class ")]
    assert sorted(text.get_rotation() for text in names) == [0] * num_classes + [90] * num_classes
    width, height = (72 * side for side in axes.figure.get_size_inches() * axes.get_position().size)  # in points
    assert width == pytest.approx(height)
    assert all(5 < text.get_fontsize() < 0.95 * width / num_classes for text in names)


@pytest.mark.parametrize(("num_tasks", "num_classes"), [(1, 1), (50, 200), (50, 50)])
def test_long_histories_draw_no_more_labels_than_fit(num_tasks, num_classes, tmp_path):
    history = long_history(num_tasks, num_classes, budget=10**6)
    assert len(texts_of(plot_history(history))) < 250
    save_history_plot(history, tmp_path)
    with Image.open(tmp_path / "history.png") as image:
        assert image.mode == "RGB"
        assert 1000 < image.width <= 1600
        assert 500 < image.height <= 1100


def test_a_history_without_answers_draws_all_else(tmp_path):
    history = make_history(((math.nan,), (math.nan, math.nan)))
    assert len(plot_history(history).axes) == 3
    save_history_plot(history, tmp_path)
    with Image.open(tmp_path / "history.png") as image:
        assert image.width > 1000
        assert image.getpixel((1, 1)) == (255, 255, 255)


def test_a_history_without_bytes_draws(tmp_path):
    history = make_history()
    for record in history.records:
        record.memory_bytes = dict.fromkeys(record.memory_bytes, 0)
    history.protocol["memory"] = None
    save_history_plot(history, tmp_path)
    assert (tmp_path / "history.png").exists()


def test_any_name_of_a_class_or_task_can_be_drawn(tmp_path, recwarn):
    names = ["$x^{2", "$a$ and $b_{$", "猫", "a\nb", "", "\ud800", "\x00", "x" * 5000, "100 %", r"\frac"]
    history = long_history(10, len(names))
    for record, name in zip(history.records, names, strict=True):
        record.name, record.new_classes[0] = name, name
    save_history_plot(history, tmp_path)
    assert not [str(warning.message) for warning in recwarn]
    labels = [text.get_text() for text in plot_history(history).axes[3].texts if text.get_rotation() == 90]
    assert labels == [
        r"\$x^{2",
        r"\$a\$ and \$b_{\$",
        "#3",
        "a b",
        "#5",
        "#6",
        "#7",
        "x" * 13 + "…",
        "100 %",
        r"\frac",
    ]


def test_labels_are_short():
    assert class_label("cat", 0) == "cat"
    assert class_label("a very long name", 0, 8) == "a very…"
    assert class_label("A VERY LONG NAME", 0, 8) == "A VER…"  # capitals are broad
    assert class_label("猫", 2) == "#3"
    assert class_label("", 0) == "#1"
    assert task_label(0, "task-01", ["cat", "dog"], 0) == "1: cat, dog"
    assert task_label(1, "task-02", [f"class {number}" for number in range(9)], 2) == "2: class 0, class 1, +7"
    assert task_label(2, "night", ["cat"], 0) == "3: night"
    assert task_label(2, "task-03", [], 9) == "3"
    sizes = {0: "0 B", 999: "999 B", 1000: "1.00 kB", 99_960: "100 kB", 999_999: "1.00 MB", 5 * 10**10: "50.0 GB"}
    assert {size: size_label(size) for size in sizes} == sizes


def test_the_picture_of_synapses_shows_the_share_of_each_part():
    axes = plot_synapses({"head": 0.1, "block 1": 0.25}, {"head": 10, "block 1": 100}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [10, 25]
