"""Files that appear whole or not at all, and are read as what they should be or not at all."""

import json
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any moment leaves either the old content or the new.

    Args:
        path (`Path`): Where; its folder must exist.
        content (`bytes`): What.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Args:
        path (`Path`): An existing file.

    Raises:
        ValueError: If it holds anything else, or numbers that JSON does not know (`NaN`, `Infinity`).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object expected, got a {type(content).__name__}")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
