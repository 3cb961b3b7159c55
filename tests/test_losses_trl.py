"""Every loss that TRL has, beside TRL 1.16: on random log-probs, and through the model with gradients."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from stages import spans
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import load
from stages.train.objective.losses import losses_of
from stages.train.objective.named import labelled, paired, reference_free
from stages.train.objective.named.loss import Loss, Sum
from stages.train.objective.report import report
from stages.train.objective.step_loss import StepLoss, Work, logps_of
from stages.train.pairs.batch import Batch

pytestmark = pytest.mark.usefixtures("alone")

CPU = torch.device("cpu")
TEXT = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
Row = dict[str, Any]


@dataclass
class Models:
    """A policy that has moved away from its reference: TRL's copy of both, and ours."""

    folder: Path
    theirs: PreTrainedModel
    reference: PreTrainedModel
    ours: PairLogprobs
    our_reference: PairLogprobs


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("moved")
    policy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.005 * torch.randn_like(weight))
    policy.save_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return Models(tiny_model, policy, reference, load(str(folder), "float32", 64), load(str(tiny_model), "float32", 64))


def settings(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def dpo(models: Models, tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    trainer = DPOTrainer(
        models.theirs,
        ref_model=models.reference,
        args=DPOConfig(**settings(tmp_path_factory.mktemp("dpo")), use_weighting=True),
        processing_class=AutoTokenizer.from_pretrained(models.folder),
        train_dataset=Dataset.from_list(TEXT),
    )
    trainer.model.eval()
    return trainer


def as_trl_names_it(trainer: DPOTrainer, loss: Loss) -> None:
    """Make the trainer compute this loss."""
    terms = loss.terms
    first = terms[0]
    trainer.loss_types, trainer.loss_weights = [term.name for term in terms], [term.weight for term in terms]
    trainer.beta, trainer.label_smoothing = first.beta, getattr(first, "label_smoothing", 0.0)
    divergence = getattr(first, "divergence", "reverse_kl")
    trainer.f_divergence_type = {"js": "js_divergence", "alpha": "alpha_divergence"}.get(divergence, divergence)
    trainer.f_alpha_divergence_coef = getattr(first, "divergence_alpha", None)
    trainer.ld_alpha = getattr(first, "ld_alpha", None)
    trainer.use_weighting = getattr(first, "wpo", False)
    trainer.args.discopop_tau = getattr(first, "tau", 0.05)


OF_DIFFERENCE = [
    paired.Sigmoid,
    paired.SigmoidNorm,
    paired.Robust,
    paired.Hinge,
    paired.Ipo,
    paired.ExoPair,
    paired.Discopop,
]
DPO_LOSSES: list[Any] = [
    *(kind(beta=0.3) for kind in OF_DIFFERENCE),
    *(kind(beta=0.3, divergence="forward_kl") for kind in OF_DIFFERENCE),
    *(kind(beta=0.3, divergence="js") for kind in OF_DIFFERENCE),
    *(kind(beta=0.3, divergence="alpha", divergence_alpha=0.4) for kind in OF_DIFFERENCE),
    *(kind(beta=0.3) for kind in (paired.NcaPair, paired.BcoPair, paired.SppoHard, paired.ApoZero, paired.ApoDown)),
    paired.Aot(beta=0.3, label_smoothing=0.2),
    paired.AotUnpaired(beta=0.3, label_smoothing=0.2),
    *(kind(beta=0.3, ld_alpha=0.4) for kind in (paired.Sigmoid, paired.Ipo, paired.NcaPair, paired.Aot)),
    *(
        kind(beta=0.3, wpo=True) for kind in (paired.Sigmoid, paired.ExoPair, paired.ApoZero)
    ),  # with hinge TRL has no gradient
    Sum(terms=[paired.Sigmoid(beta=0.3, weight=0.8), paired.BcoPair(beta=0.3, weight=0.2), reference_free.Sft()]),
    Sum(terms=[paired.Hinge(beta=0.3), paired.Aot(beta=0.3, weight=0.5)]),
]


def by_fields(loss: Any) -> str:
    changed = loss.model_dump(exclude_defaults=True, exclude={"name", "beta"})
    return "-".join([loss.name, *map(str, changed.values())])[:40]


def random_rows(count: int = 5) -> list[Row]:
    chance = np.random.default_rng(3)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [
        {"pair_id": f"{i}", "margin": None}
        | {name: chance.integers(5, 300, chance.integers(1, 9)).tolist() for name in names}
        for i in range(count)
    ]


@pytest.mark.parametrize("loss", DPO_LOSSES, ids=by_fields)
def test_dpo_losses_of_random_log_probs(loss: Any, dpo: DPOTrainer, models: Models) -> None:
    rows, chance = random_rows(), torch.Generator().manual_seed(0)
    batch = Batch.of(rows, models.ours, CPU)
    count = len(batch.layout.targets)
    policy, reference, log_squares = (-2 * torch.rand(count, generator=chance) for _ in range(3))
    policy.requires_grad_()
    inputs = dpo.data_collator(rows)
    mask = inputs["completion_mask"][:, 1:].bool()
    # TRL's rows are all chosen, then all rejected.
    order = torch.cat([torch.cat(batch.layout.split(torch.arange(count))[side::2]) for side in (0, 1)])

    def as_rows(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask.shape).masked_scatter(mask, values[order])

    def stub(**given: Any) -> SimpleNamespace:  # noqa: ARG001
        filler = {name: torch.zeros(mask.shape) for name in ("entropy", "mean_logits")}
        known = {"log_probs": as_rows(policy), "log_sum_sq_probs": as_rows(log_squares), "is_top1": mask}
        return SimpleNamespace(**filler | known)

    as_trl_names_it(dpo, loss)
    both = as_rows(reference).chunk(2)
    if dpo.ld_alpha is not None:  # precomputed sums are of the kind that the loss wants
        tail = as_rows(batch.layout.in_tail()).chunk(2)
        both = [values * (1 - (1 - dpo.ld_alpha) * tails) for values, tails in zip(both, tail, strict=True)]
    dpo.precompute_ref_logps = True
    known = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), (values.sum(1) for values in both), strict=True))
    theirs = dpo._compute_loss(stub, inputs | known, False)
    (their_slopes,) = torch.autograd.grad(theirs, policy)

    batch = replace(batch, ref_logps=batch.layout.sums(reference), ref_token_logps=reference)
    mean_length = batch.layout.lengths()[0].mean().item()
    ours = losses_of(logps_of(batch, policy, log_squares, mean_length), loss, {}).mean()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, policy)[0], their_slopes, atol=1e-6, rtol=1e-5)


def with_reference(rows: list[Row], reference: PairLogprobs) -> list[Row]:
    """What `score` adds."""
    first, second = ("completion", "mismatched") if "label" in rows[0] else ("chosen", "rejected")
    scored = []
    for row in rows:
        trained = row.get(f"{first}_trained"), row.get(f"{second}_trained")
        layout = reference.lay_out([(row["prompt_ids"], row[f"{first}_ids"], row[f"{second}_ids"])], [trained])
        with torch.no_grad():
            values = dict(zip((first, second), layout.split(reference(layout)), strict=True))
        tokens = {f"ref_{side}_token_logps": each.tolist() for side, each in values.items()}
        scored.append(row | tokens | {f"ref_{side}_logps": each.sum().item() for side, each in values.items()})
    return scored


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {
        name.removeprefix("causal_lm."): weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad()
    return {name: gradient.clone() for name, gradient in found.items()}


def assert_alike(loss: Any, rows: list[Row], models: Models, theirs: torch.Tensor) -> None:
    """TRL's loss of the rows, and its gradient, is that of a step in two micro-batches."""
    models.ours.zero_grad()
    models.theirs.zero_grad()
    theirs.backward()
    expected = gradients(models.theirs)
    work = [
        Work(partial(Batch.of, [rows[i] for i in part], models.ours, CPU), torch.tensor(part), torch.ones(len(part)))
        for part in ([1], [i for i in range(len(rows)) if i != 1])
    ]
    step = StepLoss(loss, models.ours, work, len(rows), {})
    for piece in work:
        (step.learn(piece)[0] / len(rows)).backward()
    assert step.learned()[1].mean().item() == pytest.approx(theirs.item(), abs=1e-5, rel=5e-6)
    ours = gradients(models.ours)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * max(1.0, gradient.abs().max().item()), rtol=1e-4)


@pytest.mark.parametrize("loss", DPO_LOSSES, ids=by_fields)
def test_dpo_losses_through_the_model(loss: Any, dpo: DPOTrainer, models: Models) -> None:
    rows = random_rows()
    as_trl_names_it(dpo, loss)
    dpo.precompute_ref_logps = False
    theirs = dpo.compute_loss(models.theirs, dpo.data_collator(rows))
    assert_alike(loss, with_reference(rows, models.our_reference), models, theirs)


@pytest.mark.parametrize(
    "loss",
    [
        paired.Sigmoid(beta=0.3, ld_alpha=0.4),
        paired.Ipo(beta=0.3),
        paired.Sigmoid(beta=0.3, wpo=True),
        reference_free.Sft(),
    ],
    ids=by_fields,
)
def test_a_completion_mask_of_the_spans_is_trl_s_way(loss: Any, dpo: DPOTrainer, models: Models) -> None:
    """As the README of shard says: with the mask in the collator's place, TRL counts trained tokens as we do."""
    rows = random_rows()
    for row in rows:
        for side in ("chosen", "rejected"):
            count = len(row[f"{side}_ids"])
            row[f"{side}_trained"] = [0, 1, count // 2, count - 1] if count > 5 else [count - 1, count]
    as_trl_names_it(dpo, loss)
    dpo.precompute_ref_logps = False
    inputs = dpo.data_collator(rows)
    sides = [(row, side) for side in ("chosen", "rejected") for row in rows]
    for mask, (row, side) in zip(inputs["completion_mask"], sides, strict=True):
        start, marks = len(row["prompt_ids"]), spans.marks(len(row[f"{side}_ids"]), row[f"{side}_trained"])
        mask[start : start + len(marks)] = torch.from_numpy(marks)
    theirs = dpo.compute_loss(models.theirs, inputs)
    assert_alike(loss, with_reference(rows, models.our_reference), models, theirs)


REFERENCE_FREE: list[Any] = [
    reference_free.Cpo(beta=0.3, label_smoothing=0.2, nll=0.7),
    reference_free.CpoHinge(beta=0.3),
    reference_free.CpoIpo(beta=0.3, nll=0.0),
    reference_free.SimPo(beta=2.0, gamma=0.4, label_smoothing=0.1),
    reference_free.CpoSimPo(beta=2.0, gamma=0.4, nll=0.7),
    reference_free.AlphaPo(beta=2.0, gamma=0.4, alpha=0.3),
]
CPO_NAMES = {"cpo": "sigmoid", "cpo_hinge": "hinge", "cpo_ipo": "ipo"}


@pytest.fixture(scope="module")
def cpo(models: Models, tmp_path_factory: pytest.TempPathFactory) -> CPOTrainer:
    arguments = CPOConfig(**settings(tmp_path_factory.mktemp("cpo")))
    tokenizer = AutoTokenizer.from_pretrained(models.folder)
    rows = Dataset.from_list(TEXT)
    return CPOTrainer(models.theirs, args=arguments, processing_class=tokenizer, train_dataset=rows)


@pytest.fixture(scope="module")
def orpo(models: Models, tmp_path_factory: pytest.TempPathFactory) -> ORPOTrainer:
    arguments = ORPOConfig(**settings(tmp_path_factory.mktemp("orpo")), beta=0.3)
    tokenizer = AutoTokenizer.from_pretrained(models.folder)
    rows = Dataset.from_list(TEXT)
    return ORPOTrainer(models.theirs, args=arguments, processing_class=tokenizer, train_dataset=rows)


def as_cpo_collates(rows: list[Row]) -> list[Row]:
    """Rows as its collator takes them: prompt and completion in one, and labels that leave the prompt out."""
    collated = []
    for row in rows:
        prompt = row["prompt_ids"]
        features = {"prompt": "", "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            whole = prompt + row[f"{side}_ids"]
            features |= {f"{side}_input_ids": whole, f"{side}_attention_mask": [1] * len(whole)}
            features[f"{side}_labels"] = [-100] * len(prompt) + row[f"{side}_ids"]
        collated.append(features)
    return collated


@pytest.mark.parametrize("loss", REFERENCE_FREE, ids=by_fields)
def test_reference_free_losses(loss: Any, cpo: CPOTrainer, models: Models) -> None:
    cpo.loss_type = CPO_NAMES.get(loss.name, "simpo")
    cpo.beta, cpo.cpo_alpha, cpo.alpha = loss.beta, getattr(loss, "nll", 0.0), getattr(loss, "alpha", 0.0)
    cpo.label_smoothing, cpo.simpo_gamma = getattr(loss, "label_smoothing", 0.0), getattr(loss, "gamma", 0.0)
    rows = random_rows()
    batch = cpo.data_collator(as_cpo_collates(rows))
    theirs, metrics = cpo.get_batch_loss_metrics(models.theirs, batch)
    assert_alike(loss, rows, models, theirs)
    if loss.name != "alphapo":  # whose shaped rewards TRL reports
        seen, losses = look(loss, rows, models)
        ours = report(seen, losses, loss)
        for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies"):
            assert ours[name] == pytest.approx(metrics[name], abs=1e-5), name


def look(loss: Any, rows: list[Row], models: Models) -> tuple[Any, torch.Tensor]:
    work = Work(partial(Batch.of, rows, models.ours, CPU), torch.arange(len(rows)), torch.ones(len(rows)))
    return StepLoss(loss, models.ours, [work], len(rows), {}).look()


def test_orpo(orpo: ORPOTrainer, models: Models) -> None:
    """With prompts of one token: TRL counts the prompt's tokens, all but the first, into the likelihood of chosen."""
    rows = [row | {"prompt_ids": row["prompt_ids"][:1]} for row in random_rows()]
    theirs, _ = orpo.get_batch_loss_metrics(models.theirs, orpo.data_collator(as_cpo_collates(rows)))
    assert_alike(reference_free.Orpo(beta=0.3), rows, models, theirs)


@pytest.fixture(scope="module")
def kto(models: Models, tmp_path_factory: pytest.TempPathFactory) -> KTOTrainer:
    rows = [{"prompt": "a", "completion": text, "label": text == "b"} for text in ("b", "c")]
    trainer = KTOTrainer(
        models.theirs,
        ref_model=models.reference,
        args=KTOConfig(**settings(tmp_path_factory.mktemp("kto")), per_device_train_batch_size=2),
        processing_class=AutoTokenizer.from_pretrained(models.folder),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize(
    "loss", [labelled.Kto(beta=0.3, undesirable_weight=1.5), labelled.ApoZeroUnpaired(beta=0.3)], ids=by_fields
)
def test_losses_of_labelled_completions(loss: Any, kto: KTOTrainer, models: Models) -> None:
    kto.loss_type, kto.calculate_KL = loss.name, loss.name == "kto"
    kto.beta, kto.desirable_weight, kto.undesirable_weight = loss.beta, loss.desirable_weight, loss.undesirable_weight
    shared = {"chosen_ids": "completion_ids", "rejected_ids": "mismatched_ids"}
    rows = [
        {shared.get(name, name): value for name, value in row.items() if name != "margin"} | {"label": i % 3 > 0}
        for i, row in enumerate(random_rows())
    ]
    theirs = kto.compute_loss(
        models.theirs, kto.data_collator([row | {"KL_completion_ids": row["mismatched_ids"]} for row in rows])
    )
    assert_alike(loss, with_reference(rows, models.our_reference), models, theirs)
