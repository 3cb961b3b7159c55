"""How large a model is: numbers of its parts, from its config and the heads of its files. No weight is read."""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stages.model_files import text_config, weight_shapes


@dataclass(frozen=True)
class Sizes:
    """Counts of numbers, not of bytes."""

    params: int
    layer: int  # of the largest decoder layer
    head: int  # vocabulary times hidden
    tied: bool  # head and embedding are one weight
    layers: int
    hidden: int
    heads: int
    queries: int  # heads times their width
    keys: int  # the same of key heads
    inner: int  # of the feed-forward, as many of it as a token goes through
    vocabulary: int

    @property
    def ends(self) -> int:
        """Of embedding and head."""
        return self.head if self.tied else 2 * self.head


def sizes_of(name: str) -> Sizes | None:
    """Of a model's folder or hub name; None where its config does not have what decoders have."""
    found, shapes = from_config(text_config(name)), weight_shapes(name)
    if found is None or not shapes:
        return found
    numbers = {key: math.prod(shape) for key, shape in shapes.items()}

    def layer_of(key: str) -> str:
        digits = next((part for part in key.split(".") if part.isdigit()), "")
        return key.partition(f".{digits}.")[0] + digits if digits else ""

    by_layer = [
        sum(numbers[key] for key in keys) for layer, keys in groupby(sorted(numbers, key=layer_of), layer_of) if layer
    ]
    tied = not any("lm_head" in key for key in numbers)
    own = {"params": sum(numbers.values()), "layer": max(by_layer, default=found.layer), "tied": tied}
    return Sizes(**vars(found) | own)


def from_config(config: dict[str, Any]) -> Sizes | None:
    """As gated feed-forwards and grouped heads add up, under the names of most models and of GPT-2; others about so."""

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name)), None)

    hidden, layers = first("hidden_size", "n_embd"), first("num_hidden_layers", "n_layer")
    heads, vocabulary = first("num_attention_heads", "n_head"), first("vocab_size")
    if None in (hidden, layers, heads, vocabulary):
        return None
    width = first("head_dim", "v_head_dim") or hidden // heads
    queries, keys = heads * width, (first("num_key_value_heads") or heads) * width
    inner = first("intermediate_size", "n_inner") or 4 * hidden
    gated = 2 if "n_embd" in config else 3
    experts, each = first("num_experts", "num_local_experts", "n_routed_experts"), first("moe_intermediate_size")
    feed_forward = gated * hidden * inner
    if experts:
        each = each or inner
        shared = first("shared_expert_intermediate_size") or (first("n_shared_experts") or 0) * each
        feed_forward = gated * hidden * (experts * each + shared) + hidden * experts
        inner = first("num_experts_per_tok") * each + shared
    layer = 2 * hidden * (queries + keys) + feed_forward + 2 * hidden
    head, tied = vocabulary * hidden, bool(config.get("tie_word_embeddings", True))
    params = layers * layer + (1 if tied else 2) * head + hidden
    return Sizes(params, layer, head, tied, layers, hidden, heads, queries, keys, inner, vocabulary)
