"""The forward pass, its attention and its head: against transformers, and against float64."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.logps import attention
from stages.logps.head import LogitRule, target_logps
from stages.logps.layout import Stretches
from stages.logps.reading.loading import load
from tests.gpu.inputs import Pair, Sizes, configs, random_pairs, save_model
from tests.gpu.kernel import by_definition
from tests.gpu.table import Row


def models(device: torch.device, sizes: Sizes, work: Path) -> Iterator[Row]:
    """Log-probs and gradients, prompts shared, against the model's own eager forward, a sequence at a time.

    In bfloat16 the bound is what the model's own forward pass is off by, and half as much again.
    """
    pairs = random_pairs(sizes)
    longest = max(len(prompt) + max(map(len, sides)) for prompt, *sides in pairs)
    for number, (name, config) in enumerate(configs(sizes).items()):
        folder = save_model(config, work / f"model-{number}")
        exact, rounded = (own(folder, dtype, device) for dtype in ("float32", "bfloat16"))
        expected, slopes = values_and_gradients(exact, own_logps(exact, pairs))
        theirs, their_slopes = values_and_gradients(rounded, own_logps(rounded, pairs))
        del exact, rounded
        for dtype in ("float32", "bfloat16"):
            model = load(str(folder), dtype, longest).to(device)
            assert model.shares_prompts, name
            layout = model.lay_out(pairs).to(device)
            found, gradients = values_and_gradients(model.causal_lm, model(layout))
            if dtype == "float32":
                yield Row(f"{name}: log-probs in float32, largest", far(found, expected), 2e-4, "nats")
                yield Row(f"{name}: gradients in float32, relative", relative(gradients, slopes), 1e-4)
            else:
                bound = 1.5 * rms(theirs, expected)
                yield Row(f"{name}: log-probs in bfloat16, root mean square", rms(found, expected), bound, "nats")
                bound = 1.5 * relative(their_slopes, slopes)
                yield Row(f"{name}: gradients in bfloat16, relative", relative(gradients, slopes), bound)


def own(folder: Path, dtype: str, device: torch.device) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager").to(
        device
    )


def own_logps(model: PreTrainedModel, pairs: list[Pair]) -> torch.Tensor:
    """The definition: every sequence by itself."""
    logps = []
    for prompt, *sides in pairs:
        for side in sides:
            ids = torch.tensor([prompt + side], device=model.device)
            known = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            logps.append(known.gather(1, ids[0, len(prompt) :, None])[:, 0])
    return torch.cat(logps)


def values_and_gradients(model: PreTrainedModel, logps: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    (logps * torch.linspace(-1, 2, len(logps), device=logps.device)).sum().backward()
    return logps.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def kernels(device: torch.device, sizes: Sizes, _: Path) -> Iterator[Row]:
    """Attention over stretches with shared trunks, values and gradients, against float64 by definition.

    On a GPU the kernel that training takes, in bfloat16; on a CPU that definition itself, in float32.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    eps = torch.finfo(dtype).eps
    unit = 50 if cuda else 1
    stretches = Stretches.of([n * unit for n in (9, 4, 1, 5, 12, 7)], [n * unit for n in (0, 6, 0, 0, 0, 11)])
    stretches = stretches.to(device)
    total = 38 * unit
    for head_size in (64, 128, 256) if cuda else (16,):
        for window in (None, 3 * unit):
            torch.manual_seed(0)
            shapes = [(1, sizes.heads, total, head_size), *[(1, sizes.heads // 2, total, head_size)] * 2]
            inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
            exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
            slopes = torch.randn(1, total, sizes.heads, head_size, device=device, dtype=dtype)
            if cuda:
                output, _ = attention.stretch_attention(
                    torch.nn.Identity(), *inputs, None, stretches=stretches, sliding_window=window
                )
            else:
                output = attention.over_stretches(by_definition, *inputs, stretches, None, window)
            expected = attention.over_stretches(by_definition, *exact, stretches, None, window)
            found = torch.autograd.grad((output * slopes).sum(), inputs)
            wanted = torch.autograd.grad((expected * slopes.double()).sum(), exact)
            case = f"attention, heads of {head_size}, {'no window' if window is None else 'a window'}"
            yield Row(f"{case}: output, relative", relative({"": output}, {"": expected}), 2 * eps)
            for name, mine, theirs in zip(("queries", "keys", "values"), found, wanted, strict=True):
                error = relative({"": mine}, {"": theirs})
                yield Row(f"{case}: gradient of {name}, relative", error, 4 * eps)


def head(device: torch.device, sizes: Sizes, _: Path) -> Iterator[Row]:
    """Log-probs of targets in chunks, against float64 of the same inputs."""
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(sizes.hidden, 4 * sizes.vocabulary, device=device)
    hidden = 4 * torch.randn(300, sizes.hidden, device=device)
    targets = torch.randint(4 * sizes.vocabulary, (300,), device=device)
    slopes = torch.linspace(-1, 2, 300, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, lm_head.weight, lm_head.bias)]
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        logits = torch.nn.functional.linear(*exact)
        expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        layer = torch.nn.Linear(1, 1).to(dtype)
        layer.weight, layer.bias = (torch.nn.Parameter(tensor) for tensor in inputs[1:])
        layer.out_features = len(inputs[1])
        found = target_logps(layer, inputs[0], targets, LogitRule(), chunk=100 * layer.out_features)
        given = [inputs[0], layer.weight, layer.bias]
        gradients = torch.autograd.grad((found * slopes).sum(), given)
        wanted = torch.autograd.grad((expected * slopes.double()).sum(), exact)
        # A GPU has logits in float32, whatever they are products of; a CPU rounds them.
        eps = torch.finfo(torch.float32 if device.type == "cuda" else dtype).eps
        bound = 8 * eps * logits.abs().max().item() + 1e-5
        yield Row(f"head in {str(dtype)[6:]}: log-probs, largest", far(found, expected), bound, "nats")
        for name, mine, theirs in zip(("hidden states", "weight", "bias"), gradients, wanted, strict=True):
            bound = 4 * torch.finfo(dtype).eps + 1e-5
            yield Row(
                f"head in {str(dtype)[6:]}: gradient of {name}, relative", relative({"": mine}, {"": theirs}), bound
            )


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found.double() - expected.double()).abs().max().item()


def rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found.double() - expected.double()).square().mean().sqrt().item()


def relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors together, over that of the expected ones."""
    difference = sum(
        (found[name].detach().double() - each.detach().double()).square().sum() for name, each in expected.items()
    )
    return float((difference / sum(each.detach().double().square().sum() for each in expected.values())).sqrt())
