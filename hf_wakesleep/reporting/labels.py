"""Labels: names of classes and tasks, shares and sizes as short text that a picture can show."""

import math
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def class_label(name: str, number: int, length: int = 14) -> str:
    """Return the name of a class, shortened to some characters; `#3` for a name that the font cannot write.

    Args:
        name (`str`): The name.
        number (`int`): Which class it is, from 0; shown from 1.
        length (`int`, defaults to 14): Most characters, of which capitals and other broad ones count half more.
    """
    text = " ".join(name.split())
    if not text or not all(ord(character) in _written_by_font() for character in text):
        return f"#{number + 1}"
    text = text if _width(text) <= length else _start(text, length - 1).rstrip() + "…"
    return text.replace("$", r"\$")  # else two of them enclose a formula


def task_label(number: int, name: str, new_classes: list[str], first: int, length: int = 24) -> str:
    """Return the number of a task with its name or, if that only counts, as many of its classes as fit.

    Args:
        number (`int`): Which task it is, from 0; shown from 1.
        name (`str`): Its name.
        new_classes (`list[str]`): The classes that it brought.
        first (`int`): Number of its first class.
        length (`int`, defaults to 24): About how many characters.
    """
    if name != f"task-{number + 1:02d}":
        return f"{number + 1}: {class_label(name, number, length)}"
    text = str(number + 1)
    for position, label in enumerate(new_classes):
        part = (", " if position else ": ") + class_label(label, first + position)
        rest = len(new_classes) - position - 1
        if position and len(text) + len(part) + (5 if rest else 0) > length:
            return f"{text}, +{rest + 1}"
        text += part
    return text


def percent(share: float) -> str:
    """Return a share as percent with one decimal, `unknown` if it is NaN."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def size_label(num_bytes: int) -> str:
    """Return a number of bytes in the largest unit of which it has one, with 3 digits."""
    for unit, name in UNITS:
        if num_bytes >= 0.9995 * unit:  # rounded, it is one
            return f"{num_bytes / unit:#.3g}".rstrip(".") + f" {name}"
    return f"{num_bytes} B"


def _width(text: str) -> float:
    return sum(1.5 if character.isupper() or character in "mw@%" else 1 for character in text)


def _start(text: str, length: int) -> str:
    return next(text[:stop] for stop in range(len(text), -1, -1) if _width(text[:stop]) <= length)


@cache
def _written_by_font() -> frozenset[int]:
    """Return the characters of the font in use."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
