"""The DPO loss against closed forms and against TRL."""

import math
from pathlib import Path

import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from stages.logps.layout import pack
from stages.logps.model import load
from stages.train.loss import dpo_loss

logps = st.floats(-1e4, 0, width=32)


def one(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float32) for value in values]


def test_by_hand() -> None:
    # logits = (-1 - -3) - (-2 - -2.5) = 1.5; -log sigmoid(0.2 * 1.5) = log(1 + exp(-0.3))
    result = dpo_loss(*one(-1, -3, -2, -2.5), beta=0.2)
    assert math.isclose(result.losses.item(), math.log1p(math.exp(-0.3)), rel_tol=1e-6)
    assert math.isclose(result.chosen_rewards.item(), 0.2, rel_tol=1e-6)
    assert math.isclose(result.rejected_rewards.item(), -0.1, rel_tol=1e-6)


def test_label_smoothing_by_hand() -> None:
    result = dpo_loss(*one(-1, -3, -2, -2.5), beta=0.2, label_smoothing=0.1)
    expected = 0.9 * math.log1p(math.exp(-0.3)) + 0.1 * math.log1p(math.exp(0.3))
    assert math.isclose(result.losses.item(), expected, rel_tol=1e-6)


@given(logps, logps, st.floats(0.01, 2), st.floats(0, 0.49))
def test_policy_equal_to_reference_gives_log_2(chosen: float, rejected: float, beta: float, smoothing: float) -> None:
    result = dpo_loss(*one(chosen, rejected, chosen, rejected), beta=beta, label_smoothing=smoothing)
    assert math.isclose(result.losses.item(), math.log(2), rel_tol=1e-6)


@given(logps, logps, logps, logps)
def test_swapping_the_sides_mirrors_the_rewards(a: float, b: float, c: float, d: float) -> None:
    there, back = dpo_loss(*one(a, b, c, d), beta=0.1), dpo_loss(*one(b, a, d, c), beta=0.1)
    assert there.chosen_rewards == back.rejected_rewards
    assert there.rejected_rewards == back.chosen_rewards
    assert torch.isfinite(there.losses).all()


def test_as_trl_computes_it_on_a_batch(tiny_model: Path, tmp_path: Path) -> None:
    """Model, log-probs, reference and loss, each computed by TRL and by us from the same token ids."""
    policy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    policy.save_pretrained(tmp_path / "policy")
    rows = [([5, 6, 7], [8, 9, 1], [10, 1]), ([11], [12, 13, 14, 1], [15, 1]), ([20] * 9, [21, 1], [22, 23, 1])]

    trainer = DPOTrainer(
        policy,
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=DPOConfig(output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to=[], beta=0.3),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    )
    batch = trainer.data_collator([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in rows])
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, batch)

    layout = pack(rows)
    sides = [load(str(folder), "float32", 64)(layout) for folder in (tmp_path / "policy", tiny_model)]
    ours = dpo_loss(*layout.sums(sides[0]), *layout.sums(sides[1]), beta=0.3)
    assert abs(ours.losses.mean().item() - theirs.item()) < 1e-5
    assert abs(ours.losses.mean().item() - math.log(2)) > 1e-3  # the case is not the trivial one
