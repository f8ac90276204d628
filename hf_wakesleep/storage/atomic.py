"""Files and folders that appear complete or not at all, and JSON that is checked when it is read."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

# What the operating system, safetensors and torch say when a disk takes nothing more.
_DISK_ERROR = re.compile(
    r"no space left|read-only file system|quota exceeded|input/output error|file write failed|unexpected pos"
    r"|permission denied|not a directory|file exists",
    re.IGNORECASE,
)

_ASIDE = re.compile(r"\.(task-\d{2,}|checkpoint-\d+|ingest)\.old").fullmatch


def temporary_name(path: Path) -> Path:
    """Return where a file or folder is written before it takes its place; see [`find_leftovers`]."""
    return path.with_name(f".{path.name}.tmp")


def find_leftovers(folder: Path) -> list[Path]:
    """Return what a kill has left half-written or half-removed in a folder."""
    return sorted(folder.glob(".*.tmp"))


def restore_folders(folder: Path) -> list[Path]:
    """Put back the stages and checkpoints in a folder that a kill has found while new ones were to replace them.

    Returns:
        `list[Path]`: Those that are there again.
    """
    restored = []
    for aside in sorted(path for path in folder.glob(".*.old") if _ASIDE(path.name) and path.is_dir()):
        name = folder / aside.name.removeprefix(".").removesuffix(".old")
        if name.exists():
            shutil.rmtree(aside)
        else:
            aside.replace(name)
            restored.append(name)
    return restored


def replace_folder(temporary: Path, folder: Path) -> None:
    """Let a complete folder take the place of another, so that a kill at any moment loses at most the new one.

    After a kill in between, [`restore_folders`] puts the old one back.
    """
    aside = folder.with_name(f".{folder.name}.old")
    if folder.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        folder.replace(aside)
    try:
        temporary.replace(folder)
    except OSError:
        if aside.is_dir():
            aside.replace(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any moment leaves either the old content or the new.

    Args:
        path (`Path`): Where; its folder must exist.
        content (`bytes`): What.

    Raises:
        OSError: If the disk is full or cannot be written to; the old content is still there.
    """
    temporary = temporary_name(path)
    with disk_advice(path):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which takes the place of `folder` when the block ends without an error.

    Args:
        folder (`Path`): Where; what is there already is replaced.

    Raises:
        OSError: If the disk is full or cannot be written to; what was there is still there.
    """
    temporary = temporary_name(folder)
    with disk_advice(folder):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, so that a kill at any moment leaves it complete or gone."""
    if folder.is_dir():
        temporary = temporary_name(folder.with_name(f"{folder.name}.removed"))
        shutil.rmtree(temporary, ignore_errors=True)
        folder.replace(temporary)
        shutil.rmtree(temporary)


@contextmanager
def disk_advice(path: Path) -> Iterator[None]:
    """Say what to do when what is written in the block does not fit on the disk or may not be written there."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, _DiskError) or not _DISK_ERROR.search(str(error)):
            raise
        raise _DiskError(
            f"Expected to write {path}, which failed ({error}). What was complete before is intact. Free some space "
            "or give the right to write there, then go on with `resume_from_checkpoint=True`, or choose another "
            "`output_dir`."
        ) from error


def check_writable(folder: str | Path) -> None:
    """Make a folder, and try whether files can be written there.

    Raises:
        OSError: If not.
    """
    probe = Path(folder) / ".writable.tmp"
    with disk_advice(Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(probe, b"")
        probe.unlink()


class _DiskError(OSError):
    """An error that says what to do already."""


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
