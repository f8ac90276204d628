"""Hub: one stage, or the card of a model, sent to its repository."""

import math
import warnings
from pathlib import Path

from huggingface_hub import HfApi

from ..model.digests_wakesleep import check_digests
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.card import collect_facts, render_model_card
from ..reporting.history import HISTORY_NAME, History
from .stage import CARD_NAME, STAGE_FILES

DATA_FILE = r"It seems that you are about to commit a data file \(memory/codes\.parquet\)"  # a warning, to be ignored


class TagTakenError(ValueError):
    """A tag of that name exists in the repository, but on a stage of another run."""


def publish_stage(
    folder: str | Path,
    repo_id: str,
    *,
    tag: str,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Send one stage to the Hub as one commit and tag it, unless it is there already.

    Args:
        folder (`str` or `Path`): The stage.
        repo_id (`str`): Repository; created if missing.
        tag (`str`): Name of the tag, such as `"task-03"`.
        revision (`str`, *optional*): Branch; created if missing.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`str`, *optional*): Token, if not that of the logged-in user.

    Returns:
        `str`: Hash of the commit.

    Raises:
        TagTakenError: If the tag exists and belongs to another run.
        ValueError: If a file of the stage is damaged.
        HfHubHTTPError, HTTPError, OSError: If the Hub cannot be reached or refuses the upload.
    """
    folder, api = Path(folder), HfApi(token=token)
    check_digests(folder)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    present = _find_published(api, repo_id, tag, folder)
    if present is not None:
        return present
    summary = History.load(folder).summary()
    names = ("pooled_accuracy", "forgetting")
    known = [f"{name.replace('_', ' ')} {summary[name]:.4f}" for name in names if not math.isnan(summary[name])]
    warnings.filterwarnings("ignore", DATA_FILE, UserWarning)  # `catch_warnings` is not safe in threads
    commit = api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        revision=revision,
        allow_patterns=list(STAGE_FILES),
        delete_patterns=["*.safetensors", "*.safetensors.index.json", "memory/*"],
        commit_message=": ".join([tag, *known[:1]]),
    )
    api.create_tag(repo_id, tag=tag, tag_message=", ".join(known) or tag, revision=commit.oid)
    return commit.oid


def push_card(
    model: WakeSleepForImageClassification, repo_id: str, *, revision: str | None = None, token: str | None = None
) -> None:
    """Send the card of a model, without a stage, to its repository.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        repo_id (`str`): Its repository.
        revision (`str`, *optional*): Branch; `main` if missing.
        token (`str`, *optional*): Token, if not that of the logged-in user.
    """
    card = render_model_card(collect_facts(model, History(), repo_id=repo_id))
    HfApi(token=token).upload_file(
        path_or_fileobj=card.encode(),
        path_in_repo=CARD_NAME,
        repo_id=repo_id,
        revision=revision,
        commit_message="Model card",
    )


def _find_published(api: HfApi, repo_id: str, tag: str, folder: Path) -> str | None:
    """Return the commit of a tag, if it holds this same stage; `None` if there is no such tag."""
    for ref in api.list_repo_refs(repo_id).tags:
        if ref.name == tag:
            there = api.hf_hub_download(repo_id, HISTORY_NAME, revision=tag)
            if Path(there).read_bytes() == (folder / HISTORY_NAME).read_bytes():
                return ref.target_commit
            raise TagTakenError(
                f"{repo_id} has a tag {tag!r} of another run. Choose another `hub_model_id`, or delete its tags."
            )
    return None
