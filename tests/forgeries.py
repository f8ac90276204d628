"""Forgeries: well-formed files of a stage with impossible content, whose digests say that all is well."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_wakesleep.codecs.base import add_checksum
from hf_wakesleep.model.digests_wakesleep import write_digests

CODES, CODEC, MEMORY = "memory/codes.parquet", "memory/codec.safetensors", "memory/memory.json"
CONFIG, WEIGHTS, HISTORY = "config.json", "model.safetensors", "history.json"


def _deep(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


ABSURD = [
    *(None, True, False, -1, 0, 1, 2, 3, 10**6, 10**9, 10**30, -(10**9), 0.5, 1e308, -0.0, float("nan"), float("inf")),
    *("", "x", "0", "../../x", "/etc/passwd", "a\nb", "\u202eevil", "\ud800", "\0", "x" * 100_000, "raw", "vit"),
    *([], {}, [1, 2, 3], [None], {"a": 1}, {"0": "a"}, ["a", "a"], _deep(50)),
]


def _json(name: str, path: str, value) -> Callable[[Path], None]:
    """Return an edit that sets one value of a JSON file."""

    def edit(stage: Path) -> None:
        content = json.loads((stage / name).read_text())
        *parents, last = path.split("/")
        where = content
        for key in parents:
            where = where[int(key) if isinstance(where, list) else key]
        where[int(last) if isinstance(where, list) else last] = value
        (stage / name).write_text(json.dumps(content))

    return edit


def _raw(name: str, text: str) -> Callable[[Path], None]:
    return lambda stage: (stage / name).write_text(text)


def _table(change: Callable[[pa.Table], pa.Table], **options) -> Callable[[Path], None]:
    """Return an edit that rewrites the table of codes."""

    def edit(stage: Path) -> None:
        table = change(pq.read_table(stage / CODES))
        usual = {"compression": "none", "use_dictionary": ["label", "task"], "write_statistics": False}
        pq.write_table(table, stage / CODES, **{**usual, **options})

    return edit


def _column(name: str, change: Callable[[list], list], dtype: pa.DataType | None = None) -> Callable[[Path], None]:
    def rewrite(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        values = pa.array(change(table[name].to_pylist()), dtype or table.schema.field(name).type)
        field = table.schema.field(name).with_type(values.type)
        return table.set_column(position, field, values).replace_schema_metadata(table.schema.metadata)

    return _table(rewrite)


def _features(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Return an edit that changes the description of the columns."""

    def rewrite(table: pa.Table) -> pa.Table:
        description = json.loads(table.schema.metadata[b"huggingface"])
        change(description["info"]["features"])
        return table.replace_schema_metadata({b"huggingface": json.dumps(description).encode()})

    return _table(rewrite)


def _description(text: bytes) -> Callable[[Path], None]:
    return _table(lambda table: table.replace_schema_metadata({b"huggingface": text}))


def _weights(change: Callable[[dict], object], name: str = WEIGHTS) -> Callable[[Path], None]:
    """Return an edit that rewrites the weights."""

    def edit(stage: Path) -> None:
        state = load_file(stage / name) if (stage / name).exists() else {}
        change(state)
        save_file(state, stage / name, metadata={"format": "pt"})

    return edit


def _header(text: bytes, declared: int | None = None) -> Callable[[Path], None]:
    """Return an edit that replaces the weights by a safetensors header and a few bytes."""
    size = (len(text) if declared is None else declared).to_bytes(8, "little")
    return lambda stage: (stage / WEIGHTS).write_bytes(size + text + bytes(64))


def _first_code(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return an edit that changes one code."""
    return _column("code", lambda codes: [change(codes[0]), *codes[1:]])


def _webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "WEBP", quality=1)
    return add_checksum(buffer.getvalue())


def _rename_first(state: dict) -> None:
    name = sorted(state)[0]
    state["other"] = state.pop(name)


def _first(value) -> Callable[[list], list]:
    return lambda values: [value, *values[1:]]


def _config(path: str, *values) -> list[tuple[str, Callable[[Path], None]]]:
    return [(f"config.json {path}={str(value)[:40]!r}", _json(CONFIG, path, value)) for value in values]


def _memory(path: str, *values) -> list[tuple[str, Callable[[Path], None]]]:
    return [(f"memory.json {path}={str(value)[:40]!r}", _json(MEMORY, path, value)) for value in values]


def _history(path: str, *values) -> list[tuple[str, Callable[[Path], None]]]:
    return [(f"history.json {path}={str(value)[:40]!r}", _json(HISTORY, path, value)) for value in values]


def _shard_elsewhere(stage: Path) -> None:
    shutil.move(stage / WEIGHTS, stage.parent / "outside.safetensors")
    state = {name: tensor + 1 for name, tensor in load_file(stage.parent / "outside.safetensors").items()}
    save_file(state, stage.parent / "outside.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, "../outside.safetensors")}
    (stage / "model.safetensors.index.json").write_text(json.dumps(index))


def reseal(stage: Path) -> None:
    """Write digests that agree with the files, as whoever forges a stage would."""
    try:
        settings = json.loads((stage / MEMORY).read_text())
        if "sha256" in settings:
            files = (path for path in sorted((stage / "memory").iterdir()) if path.name != "memory.json")
            settings["sha256"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
            (stage / MEMORY).write_text(json.dumps(settings))
    except (ValueError, TypeError, RecursionError):
        pass
    write_digests(stage)


def _timm(architecture: str, **model_args) -> Callable[[Path], None]:
    fields = {"model_type": "timm_wrapper", "architecture": architecture, "model_args": model_args}
    return _json(CONFIG, "backbone_config", fields)


NO_OBJECTS = ("", "[]", "{}", "null", "{", "5", '"x"', "\ufeff{}", "[" * 100_000, '{"a":' * 100_000)
NAMES = ("", "\ud800", "x" * 100_000, 5, None, ["a"])
FORGERIES: list[tuple[str, Callable[[Path], None]]] = [
    *_config("image_size", 0, -8, 10**9, "8", 8.5, None, [8, 8], True),
    *_config("lda_weight", -0.1, 1.1, float("nan"), "1", None, []),
    *_config("lda_shrinkage", 0, 2, float("nan"), "x"),
    *_config("pooling", "max", None, 3, []),
    *_config("feature_dim", 0, -1, 8, 10**9, 65_536, None, "16", []),
    *_config("classifier", "svm", None, {}),
    *_config("image_mean", [0.5], "abc", None, [float("inf")] * 3, 5),
    *_config("image_std", [0, 0, 0], [-1, 1, 1], [float("nan")] * 3, ["a", "b", "c"]),
    *_config("id2label", {"0": "a"}, {"5": "a", "6": "b"}, {"x": "a"}, ["a", "b"], {"0": "a", "1": "a"}, 7, {}),
    *_config("id2label", {str(index): str(index) for index in range(200_000)}, {"0": "a", "00": "b"}, {"-1": "a"}),
    *_config("id2label/0", *NAMES),
    *_config("num_labels", 10**9, 3, "x"),
    *_config("backbone_config", "vit", 5, [], {"model_type": "nothing"}, {"model_type": 5}, {"hidden_size": 16}),
    *_config("backbone_config/hidden_size", 10**9, 65_536, -16, 0, "16", 2.5, None, 10**30, 32),
    *_config("backbone_config/num_hidden_layers", 10**9, -1, 0, 2, 1000, "x"),
    *_config("backbone_config/intermediate_size", 10**12, -1, 64),
    *_config("backbone_config/num_attention_heads", 0, 3, -1),
    *_config("backbone_config/patch_size", 0, 10**9, -4, 3, "a"),
    *_config("backbone_config/image_size", 10**9, -8, "a"),
    *_config("backbone_config/num_channels", 10**9, 0, 4),
    *_config("backbone_config/hidden_act", "boom", 5),
    *_config("backbone_config/model_type", "gpt2", "wakesleep", "bert", "timm_wrapper", "clip"),
    *_config("backbone_config/attn_implementation", "stranger/kernel", 5),
    *_config("attn_implementation", "stranger/kernel", "kernels-community/x:y", 5),
    *_config("to_dict", 5),
    *_config("model_type", "vit", "nothing", 5),
    ("config.json without a backbone", _json(CONFIG, "backbone_config", None)),
    ("config.json: timm from a path", _timm("local-dir:/etc")),
    ("config.json: timm from elsewhere", _timm("hf-hub:a/b")),
    ("config.json: timm with a pickle", _timm("vit_tiny_patch16_224", checkpoint_path="x.pth")),
    *[(f"{name}: {text[:20]!r}", _raw(name, text)) for name in (CONFIG, MEMORY, HISTORY) for text in NO_OBJECTS],
    *_memory("codec", "jpeg", "../raw", None, [], 5, "raw"),
    *_memory("settings", None, [], "x", {"quality": -1}, {"quality": 101}, {"quality": "50"}, {"quality": 5.5}),
    *_memory("settings", {"quality": True}, {"depth": 3}, {"name": "raw"}, {"state_dict": 5}, {"quality": None}),
    *_memory("settings/weights", "../natural-1", "", None, 5, []),
    *_memory("budget", 10, -1, "1MB", 1e6, True, 2**70, [], float("inf")),
    *_memory("statistics_bytes", -1, None, "x", 10**30, 0, 12.5),
    *_memory("extra", 1),
    *_history("records", None, {}, "x", [1], [None], [{}]),
    *_history("records/0/accuracy", [], [2.0], ["x"], None, [0.5, 0.5], [-1], 0.5, [True]),
    *_history("records/0/classes", None, "abc", [5], [], [["a"]]),
    *_history("records/1/new_classes", [], ["other"], None, [{}]),
    *_history("records/1/name", None, 5, [], "task-01"),
    *_history("records/0/num_train_images", -1, 1.5, "x", 10**30, None),
    *_history("records/0/memory_bytes", {}, None, {"codes": 1}, [], 5),
    *_history("records/0/memory_bytes/codes", -1, "x", 1e9, None),
    *_history("records/0/lda_weight", 2, "x", []),
    *_history("records/0/wake_seconds", -1, "x", None),
    *_history("records/0/sleep", None, [], 5),
    *_history("records/0/fingerprint", None, "x"),
    *_history("records/0/extra", 1),
    *_history("protocol", None, [], "x"),
    *_history("untrained", None, [], {"task-02": "x"}, {"task-02": 7}),
    *_history("settings", None, [], 5),
    ("labels of another class", _column("label", _first(9))),
    ("a negative label", _column("label", _first(-1))),
    ("a huge label", _column("label", lambda values: [*values[:-1], 2**62])),
    ("labels out of order", _column("label", lambda values: values[::-1])),
    ("a missing label", _column("label", _first(None))),
    ("labels as text", _column("label", lambda values: [str(value) for value in values], pa.string())),
    ("labels as fractions", _column("label", lambda values: [value + 0.5 for value in values], pa.float64())),
    ("a negative task", _column("task", _first(-1))),
    ("an absurd task", _column("task", _first(2**31 - 1))),
    ("a missing task", _column("task", _first(None))),
    ("a missing code", _column("code", _first(None))),
    ("codes as text", _column("code", lambda values: ["x"] * len(values), pa.string())),
    ("nested codes", _column("code", lambda values: [[value] for value in values], pa.list_(pa.binary()))),
    ("tasks out of turn", _column("task", lambda values: [1, *values[1:]])),
    ("another column", _table(lambda table: table.append_column("extra", pa.array(range(len(table)))))),
    ("a column less", _table(lambda table: table.drop_columns(["task"]))),
    ("a column twice", _table(lambda table: table.rename_columns(["code", "label", "label"]))),
    ("columns in another order", _table(lambda table: table.select(["label", "code", "task"]))),
    ("no description of columns", _table(lambda table: table.replace_schema_metadata(None))),
    ("a description that is no JSON", _description(b"{")),
    ("a description that is deep", _description(b"[" * 10**5)),
    ("class names that are numbers", _features(lambda features: features["label"].update(names=[1, 2]))),
    ("class names that come twice", _features(lambda features: features["label"].update(names=["1", "1"]))),
    ("other class names", _features(lambda features: features["label"].update(names=["x", "y"]))),
    ("a class name that is empty", _features(lambda features: features["label"].update(names=["", "y"]))),
    ("a class name that is long", _features(lambda features: features["label"].update(names=["x" * 10**6, "y"]))),
    ("too few class names", _features(lambda features: features["label"].update(names=["x"]))),
    ("no class names", _features(lambda features: features["label"].pop("names"))),
    ("a label of another type", _features(lambda features: features["label"].update(_type="Value"))),
    ("a label of no type", _features(lambda features: features["label"].update(_type="os.system"))),
    ("an image for a code", _features(lambda features: features["code"].update(_type="Image"))),
    ("compressed codes", _table(lambda table: table, compression="zstd")),
    ("codes in a dictionary", _table(lambda table: table, use_dictionary=True)),
    ("codes that share beginnings", _table(lambda table: table, column_encoding={"code": "DELTA_BYTE_ARRAY"})),
    ("a code of no bytes", _first_code(lambda code: b"")),
    ("a code of noise", _first_code(lambda code: b"noise" * 20)),
    ("a code of noise under a right check", _first_code(lambda code: add_checksum(b"noise" * 20))),
    ("a code that is cut", _first_code(lambda code: code[:40])),
    ("a code of another size", _first_code(lambda code: _webp(9, 8))),
    ("a code of a huge image", _first_code(lambda code: _webp(5000, 5000))),
    ("a code of another format", _first_code(lambda code: add_checksum(b"\x89PNG\r\n\x1a\n" + code))),
    ("weights for a codec without any", _weights(lambda state: state.update(w=torch.zeros(3)), CODEC)),
    ("a codec without a tensor", _weights(lambda state: [state.pop(name) for name in sorted(state)[:1]], CODEC)),
    ("a codec of zeros", _weights(lambda state: [tensor.zero_() for tensor in state.values()], CODEC)),
    ("a codec of large numbers", _weights(lambda state: [tensor.fill_(127) for tensor in state.values()], CODEC)),
    ("a codec of fractions", _weights(lambda state: state.update({n: t.float() for n, t in state.items()}), CODEC)),
    ("weights without a tensor", _weights(lambda state: state.pop(sorted(state)[0]))),
    ("weights with a tensor more", _weights(lambda state: state.update(extra=torch.zeros(3)))),
    ("weights with another name", _weights(_rename_first)),
    ("weights of another shape", _weights(lambda state: state.update({"head.lda.means": torch.zeros(2, 5)}))),
    ("no weights", _weights(lambda state: state.clear())),
    ("a header that declares a huge header", _header(b"{}", 2**62)),
    ("a header that is no JSON", _header(b"{{{{")),
    ("a header that is deep", _header(b"[" * 10_000)),
    ("a header of a huge tensor", _header(b'{"x":{"dtype":"F32","shape":[999999999,99999],"data_offsets":[0,64]}}')),
    ("a header beyond the file", _header(b'{"x":{"dtype":"F32","shape":[100],"data_offsets":[0,400]}}')),
    ("a header of negative sizes", _header(b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,64]}}')),
    ("an index of shards elsewhere", _shard_elsewhere),
]  # fmt: skip
