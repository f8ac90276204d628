"""WakeSleepPreTrainedModel: initial weights, loading and saving of a model, with checks of its files."""

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, extract_commit_hash

from .backbone_wakesleep import first_line
from .configuration_wakesleep import WakeSleepConfig
from .digests_wakesleep import WEIGHT_FILES, check_digests, write_digests
from .head_wakesleep import INITIAL_SCALE, CosineClassifier, LinearClassifier, LinearDiscriminant

DOWNLOAD = ("revision", "token", "cache_dir", "subfolder", "local_files_only")  # which file is meant
UPLOAD = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
MAX_EXTRA_NUMBERS = 2**22  # that a model may hold beyond twice its weights on disk


class WakeSleepPreTrainedModel(PreTrainedModel):
    """Initial weights, loading and saving, as transformers expects them of a model."""

    config_class = WakeSleepConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    stage_revision: str | None = None  # commit on the Hub that the model was loaded from

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LinearDiscriminant):
            for buffer in module.buffers():
                init.zeros_(buffer)
        elif isinstance(module, LinearClassifier):
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, CosineClassifier):
            init.normal_(module.weight, std=0.02)
            init.constant_(module.scale, INITIAL_SCALE)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a stage as `PreTrainedModel.from_pretrained` does, but never a part of it and never a pickle.

        The commit is kept in `stage_revision`. In a folder, configuration and weights are compared with its
        `digests.json`, if it has one.

        Raises:
            OSError: If there is no configuration or no file of weights.
            ValueError: If files are damaged, or configuration and weights do not fit each other.
        """
        download = {key: kwargs[key] for key in DOWNLOAD if key in kwargs}
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_digests(folder, WEIGHT_FILES)
            _check_shards(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs = {"use_safetensors": True, **kwargs, "output_loading_info": True}
        try:
            cls._check_size(pretrained_model_name_or_path, kwargs.get("config"), folder, download)
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError) as error:
            raise ValueError(
                f"Expected a model in {pretrained_model_name_or_path}, but its files do not hold one "
                f"({first_line(error)}). Is the download complete?"
            ) from error
        misfits = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
        if misfits:
            raise ValueError(
                f"Expected weights of the model that config.json in {pretrained_model_name_or_path} describes, got "
                f"{ {kind: names[:3] for kind, names in misfits.items()} }. Is the download complete?"
            )
        model.head.lda.refresh()
        model.stage_revision = commit_of(pretrained_model_name_or_path, download)
        return (model, info) if wants_info else model

    @classmethod
    def _check_size(cls, name_or_path, config, folder: Path, download: dict) -> None:
        """Refuse a configuration of a model much larger than its weights, before the rest of it is allocated."""
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(name_or_path, **download)
        if folder.is_dir():
            files = sorted(folder.glob("*.safetensors"))
        else:
            file = cached_file(
                name_or_path, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **download
            )
            files = [file] if file else []  # shards are left to transformers
        stored = sum(_num_stored(file) for file in files)
        with torch.device("meta"):
            expected = sum(tensor.numel() for tensor in cls(config).state_dict().values())
        if files and expected > 2 * stored + MAX_EXTRA_NUMBERS:
            raise ValueError(
                f"Expected weights of the model that config.json in {name_or_path} describes, {expected:,} numbers, "
                f"got {stored:,}. Is the download complete?"
            )

    def save_pretrained(
        self, save_directory, is_main_process: bool = True, *, push_to_hub: bool = False, **kwargs
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with the digests of what then is in the folder.

        With `push_to_hub=True` the model alone, its digests and its card then go to `repo_id`, by default the name of
        the folder.
        """
        upload = {name: kwargs.pop(name) for name in UPLOAD if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_digests(save_directory)
        if is_main_process and push_to_hub:
            upload |= {name: kwargs[name] for name in ("token", "max_shard_size") if name in kwargs}
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **upload})


def commit_of(name_or_path: str, download: dict) -> str | None:
    """Return the commit that a configuration on the Hub was loaded from; `None` for one in a folder."""
    return extract_commit_hash(cached_file(name_or_path, "config.json", **download), None)


def _check_shards(folder: Path) -> None:
    """Refuse an index of shards that leads out of its folder."""
    for path in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            outside = [name for name in names if Path(name).name != name]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"Expected an index of shards in {path}, which does not hold one ({error!r}).") from error
        if outside:
            raise ValueError(f"Expected shards beside {path}, got {sorted(outside)[:3]}.")


def _num_stored(file: str | Path) -> int:
    """Return how many numbers a safetensors file declares."""
    with safe_open(file, framework="pt") as content:
        return sum(math.prod(content.get_slice(name).get_shape()) for name in content.keys())  # noqa: SIM118
