"""A model's config in small: sizes shrunk and kept consistent, a layer of each kind.

Configs name their sizes in many ways. What is not known here stays as it is, and shows where a model is made of it.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY, WINDOW = 64, 4  # windows are shorter than any probe, or they would not show
_HEADS, _HEAD_SIZE, _EXPERTS = 4, 16, 8
_WINDOWS = (
    "sliding_window", "sliding_window_size", "window_size", "attention_window_size", "attention_chunk_size",
    "local_attention", "keep_window_size", "index_topk", "rel_extent",
)  # fmt: skip
_INNER = (
    "intermediate_size", "intermediate_size_mlp", "moe_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "dense_intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size",
    "expert_ffn_hidden_size",
)  # fmt: skip
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_RANKS = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": _HEAD_SIZE, "qk_rope_head_dim": 8}
# What scores are scaled and logits are capped by, made to fit the small heads: with real values neither would show.
_SCALES = {"query_pre_attn_scalar": 8, "attention_multiplier": 0.4}
_SCALES |= {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0}
# Rules of layers that are not lists with an entry a layer: so many first ones, so many last ones, those numbered.
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
_LAST = ("num_kv_shared_layers",)
_NAMED = ("mlp_only_layers", "full_attn_idxs", "moe_layers", "cross_attention_layers", "hybrid_layer_ids")


def shrink(config: PreTrainedConfig, all_layers: bool = False) -> PreTrainedConfig:
    """A copy of `config` with sizes made small and kept consistent, and each different layer once; at least two.

    Kept as they are: all switches; whether there is a scale or a cap; whether heads share keys; whether heads fill the
    hidden size; how much of a head is rotated.
    """
    small = deepcopy(config)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    for name in small.sub_configs:  # a tower for images, say, is there but not run
        part = getattr(small, name, None)
        if part is not None and part is not small.get_text_config():
            _limit(part, ("num_hidden_layers", "depth", "num_blocks"), 1)
    text = small.get_text_config()
    own = {int(i): sizes for i, sizes in (text.to_dict().get("per_layer_config") or {}).items()}
    text.per_layer_config = None  # Gemma 4: layers with sizes of their own; the config cannot be read while it has them
    before = {name: getattr(text, name, None) for sizes in own.values() for name in sizes}
    for each in {id(small): small, id(text): text}.values():
        for name, value in each.to_dict().items():
            if name.endswith("token_id") and value is not None:
                setattr(each, name, [VOCABULARY - 1] if isinstance(value, list) else VOCABULARY - 1)
    _limit(text, ("vocab_size", "vocab_size_per_layer_input"), VOCABULARY)
    _limit(text, _WINDOWS, WINDOW)
    _limit(text, ("index_block_size", "index_topk_blocks"), 2)
    _limit(text, ("mamba_chunk_size", "chunk_size"), 16)  # what is shorter is filled up to one
    for name, scale in _SCALES.items():
        if getattr(text, name, None):
            setattr(text, name, scale)
    _shrink_widths(text)
    _shrink_experts(text)
    kept = list(range(text.num_hidden_layers)) if all_layers else _cut_layers(text, own)
    if own:
        text.per_layer_config = {
            new: {name: _in_proportion(value, before[name], getattr(text, name)) for name, value in own[old].items()}
            for new, old in enumerate(kept)
            if old in own
        }
    return small


def _in_proportion(value: Any, before: Any, after: Any) -> Any:
    return max(1, value * after // before) if type(value) is type(before) is int else value


def _shrink_widths(config: PreTrainedConfig) -> None:
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    ranks = {name: size for name, size in _RANKS.items() if _number(config, name)}
    head_size = _number(config, "head_dim") or (hidden // heads if hidden and heads else None)
    new_heads = min(heads or _HEADS, _HEADS)
    new_head_size = _HEAD_SIZE
    if "qk_rope_head_dim" in ranks:  # latent attention: the rotated part is what other code calls the head's size
        nope, rope, value = (_number(config, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        ranks["qk_head_dim"] = _RANKS["qk_nope_head_dim"] + _RANKS["qk_rope_head_dim"]
        ranks["v_head_dim"] = _HEAD_SIZE if value == nope else 12
        new_head_size = _RANKS["qk_rope_head_dim"] if head_size in (rope, None) else ranks["qk_head_dim"]
        _rotate(config, rope, _RANKS["qk_rope_head_dim"])
    elif head_size:
        _rotate(config, head_size, new_head_size)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if groups := _number(config, name):
            _set(config, name, new_heads if groups == heads else min(groups, 2))
    fills = not ranks and (not heads or hidden == heads * (head_size or 0))
    _set(config, "num_attention_heads", new_heads)
    _set(config, "head_dim", new_head_size)
    _set(config, "hidden_size", new_heads * new_head_size if fills else 96)
    for name, size in ranks.items():
        _set(config, name, size)
    for name in ("word_embed_proj_dim", "embedding_size"):
        if _number(config, name) == hidden:
            _set(config, name, config.hidden_size)
    for name in _INNER:
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(config, name, [128] * len(value))
        elif value:  # 0 and None mean something else
            _set(config, name, 128)


def _rotate(config: PreTrainedConfig, before: int | None, after: int) -> None:
    """Make what rotary embeddings have of a head's dimensions fit a head of `after` instead of `before`."""
    if not before:
        return
    if rotated := _number(config, "rotary_dim"):
        _set(config, "rotary_dim", max(4, rotated * after // before))
    rope = getattr(config, "rope_parameters", None) or {}
    for rule in (rope, *(each for each in rope.values() if isinstance(each, dict))):  # some have one a layer type
        for name in ("short_factor", "long_factor"):
            if factors := rule.get(name):
                count = len(factors) * after // before
                rule[name] = [factors[i * len(factors) // count] for i in range(count)]
        if sections := rule.get("mrope_section"):
            first = [section * after // before for section in sections[:-1]]
            rule["mrope_section"] = [*first, sum(sections) * after // before - sum(first)]


def _shrink_experts(config: PreTrainedConfig) -> None:
    groups, best = _number(config, "n_group"), _number(config, "topk_group")
    _limit(config, EXPERT_COUNTS, _EXPERTS)
    _limit(config, _CHOSEN, 2)
    if groups and best:
        _set(config, "n_group", min(groups, 2))
        _set(config, "topk_group", 1 if best < groups else min(groups, 2))


def _cut_layers(config: PreTrainedConfig, own: dict[int, dict[str, Any]]) -> list[int]:
    """Keep the first layer of each kind, as far as the config tells kinds apart; what it does not tell is checked.

    `own`: sizes of layers by their number. Returns which ones are kept.
    """
    count = config.num_hidden_layers
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    lists = [name for name, value in values.items() if isinstance(value, list) and len(value) == count]
    lists = [name for name in lists if name not in _NAMED]
    first, last, named = ([name for name in names if name in values] for names in (_FIRST, _LAST, _NAMED))

    def kind(i: int) -> str:
        rules = [i < values[name] for name in first] + [i >= count - values[name] for name in last]
        return repr(([values[name][i] for name in lists], rules, [i in values[name] for name in named], own.get(i)))

    kept = sorted({kind(i): i for i in reversed(range(count))}.values())
    kept = kept if len(kept) > 1 else list(range(min(count, 2)))
    for name in lists:
        setattr(config, name, [values[name][i] for i in kept])
    for name in first:
        setattr(config, name, sum(i < values[name] for i in kept))
    for name in last:
        setattr(config, name, sum(i >= count - values[name] for i in kept))
    for name in named:
        setattr(config, name, [new for new, old in enumerate(kept) if old in values[name]])
    config.num_hidden_layers = len(kept)
    return kept


def _number(config: PreTrainedConfig, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _set(config: PreTrainedConfig, name: str, value: int) -> None:
    """Where the config has such a number; some have it as a property, of others."""
    if _number(config, name) is not None and not isinstance(getattr(type(config), name, None), property):
        setattr(config, name, value)


def _limit(config: PreTrainedConfig, names: Iterable[str], largest: int) -> None:
    for name in names:
        if (value := _number(config, name)) is not None:
            _set(config, name, min(value, largest))
