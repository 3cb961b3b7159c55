"""A model as a name: a local Hugging Face folder, or a hub name with an optional revision ("org/name@revision").

Reads files only; no torch, no transformers.
"""

import json
from pathlib import Path
from typing import Any

from stages.errors import RecipeError
from stages.storage import named
from stages.storage.place import is_remote

# Of a model folder, what decides how text becomes token ids. Other weights do not change the pairs.
TOKENIZER_FILES = (
    "tokenizer", "special_tokens_map", "added_tokens", "chat_template", "vocab", "merges", "spiece",
    "generation_config",
)  # fmt: skip
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_OF_TOKENIZER = ("tokenizer", "vocab", "spiece", "merges", "sentencepiece")
_LOADED = (".safetensors", ".bin")  # of these, what transformers loads
_ADAPTER = "adapter_config.json"
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")


def split_revision(name: str) -> tuple[str, str | None]:
    """ "org/name@revision" -> ("org/name", "revision"); a local path has none.

    A model in object storage is fetched to this node, and its name here is that of the copy. Of an adapter's folder it
    is the base model.
    """
    name = base_of(name)
    if is_remote(name):
        return str(named.fetched(name)), None
    if Path(name).exists():
        return name, None
    base, _, revision = name.partition("@")
    return base, revision or None


def adapter_at(name: str) -> Path | None:
    """The folder of an adapter, as peft saves it, where `name` is one of this machine."""
    folder = Path(name)
    return folder if not is_remote(name) and (folder / _ADAPTER).is_file() else None


def adapter_config(folder: Path) -> dict[str, Any]:
    return json_object((folder / _ADAPTER).read_bytes(), str(folder / _ADAPTER))


def base_of(name: str) -> str:
    """The model that an adapter was trained on, which may lie in its own folder; any other model itself."""
    folder = adapter_at(name)
    if folder is None or (folder / "config.json").is_file():
        return name
    config = adapter_config(folder)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base or not isinstance(base, str):
        raise RecipeError(f"{folder / _ADAPTER} does not name its model: set base_model_name_or_path there")
    if adapter_at(base):
        raise RecipeError(f"{name} is an adapter on an adapter, {base}: merge that one first (train.lora.merge: true)")
    return f"{base}@{revision}" if revision and not Path(base).exists() else base


def tokenizer_at(name: str) -> tuple[str, str | None]:
    """As `split_revision`, for who needs the tokenizer alone: weights are not fetched. An adapter may have its own."""
    if adapter_at(name) and (Path(name) / "tokenizer_config.json").is_file():
        return name, None
    if is_remote(name):
        return str(named.fetched(name, lambda file: not file.endswith(WEIGHTS))), None
    return split_revision(name)


def is_tokenizer_file(name: str) -> bool:
    return name.startswith(TOKENIZER_FILES)


def check_weights(name: str, field: str) -> None:
    """Raises RecipeError where a folder of this machine has no config or no weights that transformers loads."""
    folder = Path(base_of(name))
    for each in {Path(name), folder}:
        if not each.is_dir():
            continue
        if each == folder and not (each / "config.json").is_file():
            raise _no_config(each, f"{field}: ")
        if not any(file.suffix in _LOADED for file in each.iterdir()):
            raise RecipeError(
                f"{field}: the folder {each} holds no weights ({' or '.join(f'*{end}' for end in _LOADED)}). Fetch the "
                "model again, or name the folder that has them"
            )


def check_tokenizer(name: str, field: str) -> None:
    """Raises RecipeError where a folder of this machine has none."""
    folder = Path(name if adapter_at(name) and (Path(name) / "tokenizer_config.json").is_file() else base_of(name))
    if folder.is_dir() and not any(file.name.startswith(_OF_TOKENIZER) for file in folder.iterdir()):
        raise RecipeError(
            f"{field}: the folder {folder} holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json or "
            "vocab.txt). Fetch the model again, or name a folder that has one: --set shard.tokenizer=FOLDER"
        )


def vocabulary(name: str) -> int | None:
    """How many logits the model gives a token; None where its config does not say."""
    size = text_config(name).get("vocab_size")
    return size if isinstance(size, int) else None


def max_positions(name: str) -> int | None:
    """The longest sequence the model can take, in tokens; None where its config states no limit (ALiBi, say)."""
    config = text_config(name)
    return next((config[key] for key in _CONTEXT_KEYS if config.get(key)), None)


def check_fits(name: str, longest: int, largest_id: int = 0) -> None:
    """Raises RecipeError where the model cannot take a sequence of `longest` tokens, or a token id as large as that."""
    limit = max_positions(name)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"{name} takes at most {limit} tokens (its config.json), but sequences have up to {longest}. "
            f"Set shard.max_length to {limit} or less, or use a model with a longer context"
        )
    size = vocabulary(name) if largest_id else None
    if size is not None and largest_id >= size:
        raise RecipeError(
            f"{name} has {size} tokens (vocab_size in its config.json), but the pairs have the token id {largest_id}. "
            "Use the tokenizer of this model for shard.tokenizer, or add the tokens to the model: "
            "model.resize_token_embeddings(len(tokenizer))"
        )


def has_chat_template(name: str) -> bool | None:
    """Whether the tokenizer brings one; None where it is not on this machine."""
    if (config := at_hand(name, "tokenizer_config.json")) is None:
        return None
    files = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    return bool(json_object(config.read_bytes(), str(config)).get("chat_template")) or any(
        (config.parent / file).exists() or at_hand(name, file) for file in files
    )


def at_hand(name: str, file: str) -> Path | None:
    """A file of a model's folder, or of a hub name in the cache of this machine; nothing is fetched."""
    if adapter_at(name) and (Path(name) / file).is_file():
        return Path(name) / file
    folder, revision = split_revision(name)
    if Path(folder).is_dir():
        path = Path(folder) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache  # slow to import, and only hub names need it

    found = try_to_load_from_cache(folder, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Raises RecipeError where it is none, and says of `what`."""
    try:
        found = json.loads(text)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{what} is not text in UTF-8: {error.reason}. Fetch the model again") from error
    except ValueError as error:
        raise RecipeError(f"{what} is not JSON: {error}. Fetch the model again") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{what} is not a JSON object but a {type(found).__name__}. Fetch the model again")
    return found


def text_config(name: str) -> dict[str, Any]:
    """The content of its config.json; of a model of several kinds of input, that of its text model."""
    config = json_object(_config_text(name), f"config.json of {name}")
    return config.get("text_config", config)


def weight_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of each tensor in the safetensors files of a folder on this machine, by its name there; of others nothing."""
    folder = Path(name)
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        head = _head(path)
        found |= {key: tuple(each["shape"]) for key, each in head.items() if key != "__metadata__"}
    return found


def _head(path: Path) -> dict[str, Any]:
    """What stands before the tensors: their dtypes, shapes and places."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise RecipeError(
                f"{path} is no safetensors file: of its {size} bytes {length} would be the header. A pointer of "
                "git-lfs and half a download look so. Fetch the model again"
            )
        return json_object(file.read(length), f"the header of {path}")


def _config_text(name: str) -> str | bytes:
    if is_remote(name):
        return named.read_text(name, "config.json")
    folder, revision = split_revision(name)
    if Path(folder).is_dir():
        try:
            return (Path(folder) / "config.json").read_bytes()
        except FileNotFoundError as error:
            raise _no_config(Path(folder)) from error
    from huggingface_hub import hf_hub_download  # slow to import, and only hub names need it

    return Path(hf_hub_download(folder, "config.json", revision=revision)).read_bytes()


def _no_config(folder: Path, field: str = "") -> RecipeError:
    return RecipeError(
        f"{field}the folder {folder} holds no config.json: it is no model as transformers saves one. Name the folder "
        "that has config.json and *.safetensors in it"
    )
