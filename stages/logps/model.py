"""A causal language model as a function from pairs to log-probs of their completions' tokens."""

import os
import shutil
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import pad as pad_end
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stages.errors import RecipeError
from stages.logps import attention
from stages.logps.check.small_config import EXPERT_COUNTS
from stages.logps.embedding import Embedding
from stages.logps.exchange import Exchange
from stages.logps.head import Head, LogitRule
from stages.logps.layout import ROUND, Both, Ids, Layout, pack, pad
from stages.logps.linear import Linear, choose


class PairLogprobs(nn.Module):
    """Wraps a causal LM; the head runs inside this forward, so that FSDP gathers its weight like any other."""

    def __init__(self, causal_lm: PreTrainedModel):
        super().__init__()
        self.causal_lm = causal_lm
        self.rule = LogitRule.of(causal_lm.config.get_text_config())
        self.shares_prompts = False
        self.exchange: Exchange | None = None
        self._layers = _name_of_layers(causal_lm)
        self._own_attention = causal_lm.config._attn_implementation
        if causal_lm.dtype == torch.float32 and not torch.cuda.is_available():
            choose()
        for module in causal_lm.modules():
            if type(module) is nn.Linear:
                Linear.take_over(module)
            elif type(module) is nn.Embedding:
                Embedding.take_over(module)
        Head.take_over(self.head)

    @property
    def head(self) -> Head:
        return cast(Head, self.causal_lm.get_output_embeddings())

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, wrapped or not."""
        return cast(nn.ModuleList, self.causal_lm.get_submodule(self._layers))

    @property
    def routes(self) -> bool:
        """Whether a router chooses experts for each token: rounding then changes a choice here and there."""
        config = self.causal_lm.config.get_text_config()
        return any((getattr(config, name, None) or 0) > 1 for name in EXPERT_COUNTS)

    def share_prompts(self, shares: bool) -> None:
        """Whether to lay pairs out with their common start once; if not, the model's own attention is back."""
        self.causal_lm.set_attn_implementation(attention.NAME if shares else self._own_attention)
        self.shares_prompts = shares

    def spread_tokens(self, exchange: Exchange, name: str) -> None:
        """Compute from now on this rank's tokens of each row; the ranks of `exchange` call forward together.

        Raises RecipeError where pairs are computed apart, as then only the model's own attention knows how, and where
        the heads cannot be shared out.
        """
        if not self.shares_prompts:
            raise RecipeError(
                f"cluster.train.context_parallel is {exchange.size}, but {name} ({type(self.causal_lm).__name__}) "
                "computes the two sequences of a pair apart (the log says why), by its own attention, which needs all "
                "tokens at once. Set it to 1"
            )
        exchange.check(self.causal_lm.config.get_text_config().num_attention_heads, name)
        self.exchange = exchange

    def lay_out(self, pairs: Sequence[tuple[Ids, Ids, Ids]], trained: Sequence[Both] | None = None) -> Layout:
        """Pairs as (prompt_ids, chosen_ids, rejected_ids) -> what this model's forward takes.

        `trained`: of each pair the spans of both completions (spans.py); left out, all of their tokens.
        """
        multiple = ROUND * (1 if self.exchange is None else self.exchange.size)
        return pack(pairs, multiple, trained) if self.shares_prompts else pad(pairs, trained)

    def compile_layers(self) -> None:
        """Let torch.compile fuse what stands between the products of each decoder layer; the first call takes longer.

        Raises RecipeError where there is no compiler: torch would say so in the middle of the first batch.
        """
        compiler = os.environ.get("CXX", "g++")
        if not torch.cuda.is_available() and shutil.which(compiler) is None:
            raise RecipeError(
                f"compile: true in the cluster file needs a C++ compiler on every node, and {compiler} is not there. "
                "Install g++ (or name another in CXX), or set compile to false"
            )
        # What stands between products is computed again for the backward pass, where it is fused with what is there
        # anyway. Else the inputs of all products are kept: a quarter of what a layer of a Llama keeps.
        torch._functorch.config.ban_recompute_materialized_backward = False
        for layer in self.layers:
            layer.compile(dynamic=True)

    def forward(self, layout: Layout, squares: bool = False) -> torch.Tensor:
        """Log-probs [N] float32, nats, of the layout's target tokens, given what comes before them in their sequence.

        With `squares` [2, N]: in the second row the log of the sum of all squared probabilities there (head.py).

        A token that nothing comes before, the first of a completion after an empty prompt, has a log-prob of 0: a
        causal model says nothing of it, and trainers leave it out of their sums.
        """
        exchange, ids, positions = self.exchange, layout.input_ids, layout.position_ids
        sources, targets = layout.sources, layout.targets
        seen: dict[str, Any] = {"attention_mask": layout.attention_mask}
        if layout.stretches is not None:
            seen = {"position_ids": positions, "stretches": layout.stretches}
        if exchange is not None and positions is not None:
            ids, seen["position_ids"], seen["exchange"] = exchange.own(ids), exchange.own(positions), exchange
            own = exchange.holds(sources)
            sources, targets = sources[own] // exchange.size, targets[own]
        output = self.causal_lm.base_model(input_ids=ids, use_cache=False, **seen)
        count = len(targets)
        spare = (0, max(1, -(-count // ROUND)) * ROUND - count)  # at least one row: all ranks call the head
        hidden = output.last_hidden_state.flatten(0, 1)[pad_end(sources.clamp(min=0), spare)]
        logps: torch.Tensor = self.head.target_logps(hidden, pad_end(targets, spare), self.rule, squares)
        logps = logps[..., :count]
        if exchange is not None:
            logps = exchange.joined(logps, own, len(layout.targets))
        return logps.where(layout.sources >= 0, 0.0)


def _name_of_layers(causal_lm: PreTrainedModel) -> str:
    """The longest list of what transformers marks as layers; experts may be a longer list, and are none.

    The longest of all lists where a model of somebody's own marks nothing.
    """
    own = set((causal_lm.get_decoder() or causal_lm).modules())  # a tower for images may have more
    lists = {n: each for n, each in causal_lm.named_modules() if isinstance(each, nn.ModuleList) and each in own}
    marked = {n: each for n, each in lists.items() if all(isinstance(m, GradientCheckpointingLayer) for m in each)}
    found = marked or lists
    return max(found, key=lambda name: len(found[name]), default="")
