"""Files that appear whole or not at all."""

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
