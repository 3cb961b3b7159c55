"""Which layout a model's pairs can have, tried on its architecture in small (miniature.py) and not on its weights.

Weights answer only as exactly as their precision. On the ids below, SmolLM2's residual stream has a coordinate of
25,000, as at the start of any text, that later layers take away again; bfloat16 rounds it in steps of 128, and
log-probs are off by up to seven nats, by others in each way to compute attention.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from stages.errors import RecipeError
from stages.logps import attention
from stages.logps.check.miniature import miniatures, nudged
from stages.logps.head import LogitRule
from stages.logps.model import PairLogprobs


class NeedsWeights(Exception):
    """No small copy of a model could be made: its own weights would have to be tried, and it has none yet."""


Pairs = list[tuple[list[int], list[int], list[int]]]
PROBE: Pairs = [([1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12]), ([5], [3, 4, 2], [3, 7])]

# Most tokens stand behind a trunk that they do not follow in the row: what a kernel gets wrong shows in the most.
BEHIND: Pairs = [([*range(1, 9)], [10, 11], [*range(12, 32)]), ([5, 6], [7], [*range(8, 28)])]


@torch.no_grad()
def why_apart(causal_lm: PreTrainedModel, name: str) -> str | None:
    """Why a pair's two sequences must be computed apart; None where they can share their prompt.

    Where no miniature can be made, the model itself is tried in float32, as exactly; in another precision sharing is
    not tried, and only its head is looked at. Else it is not run: it may be on the meta device.
    Raises RecipeError where even log-probs computed apart would not be the model's own; NeedsWeights where it would
    have to be tried, and is on the meta device.
    """
    reason = attention.why_not(type(causal_lm), causal_lm.config.get_text_config())
    for copy, expected in _tried_on(causal_lm):
        if copy is not causal_lm:  # its own log-probs are eager's; apart, it computes as the model was loaded to
            copy.set_attn_implementation(causal_lm.config._attn_implementation)
        model = PairLogprobs(copy)
        if reason is None:
            try:
                model.share_prompts(True)
                reason = _disagreement(model, expected)
            except Exception as error:
                reason = f"its attention asks for more than stretches give: {error}"
            model.share_prompts(False)
            if reason is None:
                return None
        try:
            disagreement = _disagreement(model, expected)
        except Exception:  # whether for the miniature's sake is for the model to say
            continue
        if disagreement:
            raise _unsupported(causal_lm, name, disagreement)
        return reason
    if causal_lm.device.type == "meta":
        raise NeedsWeights
    if disagreement := _other_head(causal_lm):
        raise _unsupported(causal_lm, name, disagreement)
    return reason or "no small copy of it could be made to try sharing on"


def _tried_on(causal_lm: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, torch.Tensor]]:
    """Models that answer for this one, with their own log-probs."""
    for copy in miniatures(causal_lm):
        try:
            expected, moved = own_logps(copy), own_logps(nudged(copy))
        except Exception:  # its sizes do not fit together
            continue
        if (moved - expected).abs().max() < 0.3 * _tolerance(expected):
            yield copy, expected
    if causal_lm.device.type != "meta" and {weight.dtype for weight in causal_lm.parameters()} == {torch.float32}:
        yield causal_lm, own_logps(causal_lm)


@torch.no_grad()
def check_kernels(causal_lm: PreTrainedModel, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Try the kernels that `device` takes for stretches in `dtype`: the check at load has met those of CPUs alone.

    On a miniature, whose log-probs in float32 and, by its own attention, in `dtype` are known. Medians are compared: a
    router's rare other choice is no fault. Raises RecipeError where the kernels are off by more than rounding.
    """
    copy = next((copy for copy, _ in _tried_on(causal_lm)), causal_lm)
    if copy is causal_lm:
        return
    expected = own_logps(copy, BEHIND)
    rounded, model = own_logps(copy.to(dtype), BEHIND), PairLogprobs(copy.to(device))
    model.share_prompts(True)
    computed = model(model.lay_out(BEHIND).to(device)).cpu()
    rounding, found = ((logps - expected).abs().median().item() for logps in (rounded, computed))
    if not found <= 4 * rounding + 0.02 * expected.std().item():
        raise RecipeError(
            f"{name} ({type(causal_lm).__name__}) in {dtype} on {device}: log-probs of half the tokens are off by "
            f"{found:.3g} nats and more, where rounding explains {rounding:.3g}. The attention kernels of this torch "
            "are at fault: score and train in float32, or take another version of torch"
        )


@torch.no_grad()
def own_logps(causal_lm: PreTrainedModel, pairs: Pairs = PROBE) -> torch.Tensor:
    """Log-probs [N] float32 of all sides' tokens, 17 in the probe, by the model's own forward, a sequence at a time."""
    logps, device = [], causal_lm.device
    for prompt, *sides in pairs:
        for side in sides:
            ids = torch.tensor([prompt + side], device=device)
            logits = causal_lm(input_ids=ids, use_cache=False).logits[0].float().cpu()
            at_targets = logits[len(prompt) - 1 : -1].log_softmax(-1)
            logps.append(at_targets.gather(1, torch.tensor(side)[:, None])[:, 0])
    return torch.cat(logps)


def _disagreement(model: PairLogprobs, expected: torch.Tensor) -> str | None:
    layout = model.lay_out(PROBE).to(model.causal_lm.device)
    difference = (model(layout).cpu() - expected).abs().max().item()
    return None if difference < _tolerance(expected) else f"log-probs would be off by {difference:.3g} nats"


def _tolerance(expected: torch.Tensor) -> float:
    """Rounding is a millionth of log-probs' spread; a window off by one, or a cap left out, a hundredth and more."""
    return 1e-3 * expected.std().item() + 1e-6 * expected.abs().max().item()


def _other_head(causal_lm: PreTrainedModel) -> str | None:
    """What the model does between hidden states and logits that ours does not: of one pass, so in any precision."""
    seen = []
    handle = causal_lm.base_model.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        ids = torch.tensor([PROBE[0][0]], device=causal_lm.device)
        logits = causal_lm(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
    hidden = getattr(seen[-1], "last_hidden_state", None)
    head = causal_lm.get_output_embeddings()
    if hidden is None or hidden.shape[-1] != head.in_features:
        return "its base model does not give what its head takes"
    difference = (LogitRule.of(causal_lm.config.get_text_config())(head(hidden)) - logits).abs().max().item()
    rounding = 4 * torch.finfo(hidden.dtype).eps * logits.abs().max().item()
    return None if difference <= rounding else f"logits would be off by {difference:.3g}"


def _unsupported(causal_lm: PreTrainedModel, name: str, disagreement: str) -> RecipeError:
    what = f"{name} ({type(causal_lm).__name__})"
    return RecipeError(f"{what} turns token ids into logits in a way that is not supported: {disagreement}")
