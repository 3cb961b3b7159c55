"""What a model is, from its files: size, context, chat template. No weight is read."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.identity import Digests, model_identity
from stages.model_files import (
    at_hand,
    base_of,
    check_tokenizer,
    check_weights,
    has_chat_template,
    max_positions,
    split_revision,
)
from stages.train.memory.sizes import Sizes, sizes_of

_SMALL = ("config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True)
class Model:
    name: str
    sizes: Sizes | None  # None where its config is not a decoder's
    context: int | None  # tokens; None where no limit is stated
    chat: bool  # its tokenizer has a chat template

    @classmethod
    def at(cls, name: str) -> "Model":
        """Raises RecipeError where it is not there, or lacks what a run needs of it."""
        if not Path(name).is_dir() and not _is_fetched(name):
            _fetch_small(model_identity(name, Digests(None), "MODEL")[0])  # which says where it was looked for
        check_weights(name, "MODEL")
        check_tokenizer(name, "MODEL")
        return cls(name, sizes_of(base_of(name)), max_positions(name), bool(has_chat_template(name)))

    @property
    def params(self) -> int:
        return self.sizes.params if self.sizes else 0

    @property
    def told(self) -> str:
        size = f"{named(self.params)} weights, " if self.params else ""
        context = f"a context of {self.context:,} tokens" if self.context else "no stated limit of its context"
        return f"{size}{context}, {'a' if self.chat else 'no'} chat template"


def _is_fetched(name: str) -> bool:
    try:
        return at_hand(name, "config.json") is not None
    except ValueError:  # it is no name of a hub
        return False


def _fetch_small(name: str) -> None:
    """Of a hub's model what is looked at, without its weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    base, revision = split_revision(name)
    for file in _SMALL:
        with suppress(EntryNotFoundError):
            hf_hub_download(base, file, revision=revision)


def named(count: int) -> str:
    """135M, 8.0B."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count:,}"
