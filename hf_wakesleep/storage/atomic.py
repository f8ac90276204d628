"""Atomic writing of files and folders, and checked reading of JSON."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

# Messages of the operating system, safetensors and torch when nothing can be written to a disk.
_DISK_ERROR = re.compile(
    r"no space left|read-only file system|quota exceeded|input/output error|file write failed|unexpected pos"
    r"|permission denied|not a directory|file exists",
    re.IGNORECASE,
)

_ASIDE = re.compile(r"\.(task-\d{2,}|checkpoint-\d+|ingest)\.old").fullmatch


def temporary_name(path: Path) -> Path:
    """Return the name under which a file or folder is written; [`find_leftovers`] finds it after a kill."""
    return path.with_name(f".{path.name}.tmp")


def find_leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders that a killed process has left in a folder."""
    return sorted(folder.glob(".*.tmp"))


def restore_folders(folder: Path) -> list[Path]:
    """Put back the stages and checkpoints in a folder that a killed process was about to replace.

    Returns:
        `list[Path]`: The folders that were put back.
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
    """Replace a folder by a complete one.

    The old folder is kept until the new one is in place. After a kill in between, [`restore_folders`] puts it back.
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
        path (`Path`): The file; its folder must exist.
        content (`bytes`): Its new content.

    Raises:
        OSError: If the disk is full or cannot be written to; the old content is kept.
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
    """Yield an empty temporary folder that replaces `folder` when the block ends without an error.

    Args:
        folder (`Path`): The final folder; one that exists is replaced.

    Raises:
        OSError: If the disk is full or cannot be written to; the old folder is kept.
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
    """Remove a folder if it exists; a kill at any moment leaves it complete or gone."""
    if folder.is_dir():
        temporary = temporary_name(folder.with_name(f"{folder.name}.removed"))
        shutil.rmtree(temporary, ignore_errors=True)
        folder.replace(temporary)
        shutil.rmtree(temporary)


@contextmanager
def disk_advice(path: Path) -> Iterator[None]:
    """Turn an error of a full or read-only disk inside the block into one that says what to do."""
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
    """Create a folder and check that files can be written in it.

    Raises:
        OSError: If they cannot.
    """
    probe = Path(folder) / ".writable.tmp"
    with disk_advice(Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(probe, b"")
        probe.unlink()


class _DiskError(OSError):
    """An error of the disk whose message says what to do."""


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Args:
        path (`Path`): An existing file.

    Raises:
        ValueError: If the file holds something else, or `NaN` or `Infinity`, which are not JSON.
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
