"""Outbox: sends the stages of an output folder to the Hub in order, each as one commit and one tag.

    python -m hf_wakesleep push OUTPUT_DIR

sends the stages that an earlier run could not send. `hub.json`, beside the stages, lists those that have arrived; it
holds no token.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm
from transformers.utils import logging

from ..storage.atomic import read_json, write_atomically
from ..storage.lock import folder_lock
from .hub import publish_stage
from .stage import find_stages

logger = logging.get_logger(__name__)

OUTBOX_NAME = "hub.json"
ATTEMPTS = 5  # to send one stage, before it is left for later
FIRST_WAIT = 1.0  # seconds before the second attempt; twice as long before each further one
NETWORK_ERRORS = (HTTPError, OSError, RuntimeError)  # hf_xet raises RuntimeError when a transfer fails


@dataclass
class Outbox:
    """Where the stages of an output folder are sent, and which have arrived.

    Args:
        repo_id (`str`): Repository, with or without the name of its owner.
        revision (`str`, *optional*): Branch; `main` if missing.
        private (`bool`, *optional*): Whether a new repository is private; the owner's default if missing.
        published (`dict[str, str]`): Commit of every stage that has arrived, by its tag.
    """

    repo_id: str
    revision: str | None = None
    private: bool | None = None
    published: dict[str, str] = field(default_factory=dict)

    def save(self, output_dir: str | Path) -> None:
        """Write `hub.json`; if the program is killed meanwhile, the old file stays."""
        write_atomically(Path(output_dir) / OUTBOX_NAME, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, output_dir: str | Path) -> "Outbox":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is missing or holds something else.
        """
        path = Path(output_dir) / OUTBOX_NAME
        if not path.is_file():
            raise ValueError(
                f"Expected {path}, which does not exist. It is written by a run with `push_to_hub=True`; pass its "
                "`output_dir`."
            )
        try:
            return cls(**read_json(path))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Expected an outbox in {path}, which does not hold one ({error!r}).") from error


def push_pending(
    output_dir: str | Path,
    *,
    token: str | None = None,
    wait: Callable[[float], object] = time.sleep,
    show_progress: bool = True,
) -> list[str]:
    """Send all stages of an output folder that have not arrived yet, in order; stop at the first that fails.

    The folder is locked meanwhile, so that no run writes to it.

    Args:
        output_dir (`str` or `Path`): Output folder of a run, with `hub.json`.
        token (`str`, *optional*): Token, if not that of the logged-in user.
        wait (`Callable`, *optional*): Called before another attempt with the seconds to wait.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar.

    Returns:
        `list[str]`: Tags of the stages that are still to be sent.

    Raises:
        ValueError: If there is no `hub.json` in the folder, or a run that is still alive writes to it.
    """
    outbox = Outbox.load(output_dir)
    with folder_lock(output_dir):
        return _push_pending(output_dir, outbox, token, wait, show_progress)


def _push_pending(
    output_dir: str | Path,
    outbox: Outbox,
    token: str | None,
    wait: Callable[[float], object] = time.sleep,
    show_progress: bool = False,
) -> list[str]:
    """Send the stages that are not in the outbox yet, and return the tags that are still to be sent."""
    pending = [stage for stage in find_stages(output_dir) if stage.name not in outbox.published]
    for position, stage in enumerate(tqdm(pending, desc="pushing stages", disable=not show_progress, leave=False)):
        commit = _publish_with_retries(stage, outbox, token, wait)
        if commit is None:
            return [left.name for left in pending[position:]]
        outbox.published[stage.name] = commit
        outbox.save(output_dir)
    return []


class Publisher:
    """Sends stages in the background while the next task is learned.

    Args:
        output_dir (`str` or `Path`): Output folder of the run.
        repo_id (`str`): Repository.
        revision (`str`, *optional*): Branch.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`str`, *optional*): Token; it is never written to disk.

    Raises:
        ValueError: If the stages of that folder are sent to another repository or branch.
    """

    def __init__(
        self,
        output_dir: str | Path,
        repo_id: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ):
        self.output_dir = Path(output_dir)
        self.token = token
        self._outbox = Outbox(repo_id, revision, private)
        if (self.output_dir / OUTBOX_NAME).is_file():
            there = Outbox.load(self.output_dir)
            if (there.repo_id, there.revision) != (repo_id, revision):
                raise ValueError(
                    f"The stages in {self.output_dir} go to {there.repo_id} ({there.revision or 'main'}), got "
                    f"{repo_id} ({revision or 'main'}). Pass the same, or delete {OUTBOX_NAME} there to send all anew."
                )
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._closing = threading.Event()

    def publish(self) -> None:
        """Start to send pending stages in the background, and return at once."""
        if not (self.output_dir / OUTBOX_NAME).is_file():
            self._outbox.save(self.output_dir)
        self._wanted.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
            self._thread.start()

    def finish(self, show_progress: bool = True) -> list[str]:
        """Wait for the background, send failed stages once more, and return the tags that are still to be sent."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            self._closing.clear()
            self._thread = None
        if not (self.output_dir / OUTBOX_NAME).is_file():
            return []
        left = _push_pending(self.output_dir, Outbox.load(self.output_dir), self.token, show_progress=show_progress)
        if left:
            logger.warning(
                f"{len(left)} stages could not be sent to {self._outbox.repo_id} ({', '.join(left)}). They stand in "
                f"{self.output_dir}; send them with `python -m hf_wakesleep push {self.output_dir}`."
            )
        return left

    def _run(self) -> None:
        while self._wanted.is_set():
            self._wanted.clear()
            _push_pending(self.output_dir, Outbox.load(self.output_dir), self.token, self._closing.wait)


def _publish_with_retries(
    stage: Path, outbox: Outbox, token: str | None, wait: Callable[[float], object]
) -> str | None:
    """Send a stage and return its commit; `None` if that failed and it is left for later."""
    for attempt in range(ATTEMPTS):
        try:
            return publish_stage(
                stage,
                outbox.repo_id,
                tag=stage.name,
                revision=outbox.revision,
                private=outbox.private,
                token=token,
            )
        except NETWORK_ERRORS as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            logger.info(f"{stage.name}: attempt {attempt + 1} of {ATTEMPTS} failed ({reason})")
            if attempt + 1 < ATTEMPTS:
                wait(FIRST_WAIT * 2**attempt)
        except ValueError as error:
            reason = str(error)
            break
    logger.warning(f"{stage.name} was not sent to {outbox.repo_id} ({reason}). It is kept and sent later.")
    return None
