"""Digests: the SHA-256 of every file that is read from a stage or checkpoint, in `digests.json` beside them."""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

DIGESTS_NAME = "digests.json"
WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")  # what `from_pretrained` reads
MEMORY_FILES = (
    "memory/codes.parquet",
    "memory/codec.safetensors",
    "memory/synapses.safetensors",
    "memory/memory.json",
)
HISTORY_FILES = ("history.json",)
CHECKED_FILES = (*WEIGHT_FILES, *MEMORY_FILES, *HISTORY_FILES, "preprocessor_config.json", "*_wakesleep.py")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def write_digests(folder: str | Path) -> None:
    """Write the digests of the checked files in a folder; call it last, when everything else is written."""
    digests = {name: file_digest(Path(folder, name)) for name in _present(Path(folder), CHECKED_FILES)}
    Path(folder, DIGESTS_NAME).write_text(json.dumps({"sha256": digests}, indent=1) + "\n", encoding="utf-8")


def check_digests(folder: str | Path, patterns: Iterable[str] = CHECKED_FILES) -> None:
    """Check the files of a folder against its `digests.json`; a folder without that file is not checked.

    Args:
        folder (`str` or `Path`): A stage, or any folder that a model was saved in.
        patterns (`Iterable[str]`): Which files, relative to the folder; all of `CHECKED_FILES` by default.

    Raises:
        ValueError: If a file has changed, is missing or has been added.
    """
    folder, patterns = Path(folder), tuple(patterns)
    if not (folder / DIGESTS_NAME).exists():
        return
    digests = _read_digests(folder / DIGESTS_NAME)
    expected = {name: digest for name, digest in digests.items() if _matches(name, patterns)}
    found = {name: file_digest(folder / name) for name in _present(folder, patterns)}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"Expected in {folder} the files that were written together, as {DIGESTS_NAME} lists them, but "
            f"{wrong[:5]} are damaged, missing or of another run. Copy or download the folder again; if they were "
            f"changed on purpose, delete {DIGESTS_NAME}."
        )


def _read_digests(path: Path) -> dict[str, str]:
    try:
        digests = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        if not all(isinstance(digest, str) for digest in digests.values()):
            raise TypeError("a digest that is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"Expected digests in {path}, which does not hold any ({error!r}). Copy or download the folder again, or "
            "delete that file to go without a check."
        ) from error
    return digests


def _present(folder: Path, patterns: Iterable[str]) -> list[str]:
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits a pattern in which `*` matches no `/`."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
