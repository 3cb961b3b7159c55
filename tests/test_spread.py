"""A model over several devices, of which one has no memory: torch's fake tensors have shapes and devices but no values,
and refuse an operation whose tensors are on two."""

import pytest
import torch
from test_logps import CONFIGS, PAIRS
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForCausalLM

from stages.logps.model import PairLogprobs
from stages.logps.reading.spread import spread

DEVICES = [torch.device("cpu"), torch.device("meta")]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("name", ["llama", "llama, biased, tied", "gemma2"])
def test_layers_are_spread_and_inputs_follow(name: str, shares: bool) -> None:
    config = CONFIGS[name].__class__(**CONFIGS[name].to_dict() | {"num_hidden_layers": 9, "layer_types": None})
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = PairLogprobs(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        model.share_prompts(shares)
        layout = model.lay_out(PAIRS)
        whole = sum(weight.nbytes for weight in model.parameters())
        logps = spread(model, DEVICES)(layout.to(DEVICES[0]))
    assert (logps.device, logps.shape) == (DEVICES[0], layout.targets.shape)
    held = dict.fromkeys(DEVICES, 0)
    for weight in model.parameters():
        held[weight.device] += weight.nbytes
    layer = sum(weight.nbytes for weight in model.layers[0].parameters())
    assert all(whole / 2 - layer < size < whole / 2 + layer for size in held.values())
    order = [next(layer.parameters()).is_meta for layer in model.layers]
    assert order == sorted(order)
    assert model.head.weight.device == model.causal_lm.get_input_embeddings().weight.device == DEVICES[0]


def test_one_device_has_it_all() -> None:
    with FakeTensorMode():
        model = spread(PairLogprobs(AutoModelForCausalLM.from_config(CONFIGS["llama"])), DEVICES[:1])
    assert {weight.device for weight in model.parameters()} == {DEVICES[0]}
