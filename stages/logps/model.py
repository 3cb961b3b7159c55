"""A causal language model as a function from pairs to log-probs of their completions' tokens."""

from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.errors import RecipeError
from stages.logps.head import LogitRule, target_logps
from stages.logps.layout import Layout
from stages.model_files import max_positions, split_revision


class PairLogprobs(nn.Module):
    """Wraps a causal LM; the head runs inside this forward, so that FSDP gathers its weight like any other."""

    def __init__(self, causal_lm: PreTrainedModel):
        super().__init__()
        self.causal_lm = causal_lm
        self.rule = LogitRule.of(causal_lm.config.get_text_config())

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers: the longest list of modules in it."""
        lists = [module for module in self.causal_lm.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len)

    def forward(self, layout: Layout) -> torch.Tensor:
        """Log-probs [N] float32, nats, of the layout's target tokens given all that comes before them in their row."""
        output = self.causal_lm.base_model(
            input_ids=layout.input_ids, attention_mask=layout.attention_mask, use_cache=False
        )
        hidden = output.last_hidden_state.flatten(0, 1)[layout.sources]
        return target_logps(hidden, self.causal_lm.get_output_embeddings(), self.rule, layout.targets)


def load(name: str, dtype: str, longest: int) -> PairLogprobs:
    """Load a local folder or hub name for sequences of up to `longest` tokens, with dropout off.

    Raises RecipeError where the model cannot take that length, or where its log-probs cannot be computed this way.
    """
    check_fits(name, longest)
    folder, revision = split_revision(name)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, revision=revision, dtype=getattr(torch, dtype))
    model = PairLogprobs(cast(PreTrainedModel, causal_lm)).eval()
    _check_head(model, name)
    return model


def check_fits(name: str, longest: int) -> None:
    limit = max_positions(name)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"{name} takes at most {limit} tokens (its config.json), but sequences have up to {longest}. "
            f"Set shard.max_length to {limit} or less, or use a model with a longer context"
        )


@torch.no_grad()
def _check_head(model: PairLogprobs, name: str) -> None:
    """Some architectures change the hidden states or logits in ways of their own. Find out now, not in the results."""
    ids = torch.arange(1, 5)[None]
    row = Layout(ids, torch.ones_like(ids), torch.arange(3), ids[0, 1:], torch.zeros(3, dtype=torch.int64))
    logits = model.causal_lm(input_ids=ids, use_cache=False).logits[0, :3].float()
    expected = logits.log_softmax(-1).gather(1, row.targets[:, None])[:, 0]
    difference = (model(row) - expected).abs().max().item()
    if not difference < 1e-3 * (1 + expected.abs().max().item()):
        raise RecipeError(
            f"{name} ({type(model.causal_lm).__name__}) turns hidden states into logits in a way that is not "
            f"supported: log-probs would be off by {difference:.3g} nats"
        )
