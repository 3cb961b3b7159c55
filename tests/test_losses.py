"""The losses as functions: by hand, against their papers' formulas, at their limits. Beside TRL: test_losses_trl.py."""

import math
import re
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stages.train.objective.losses import LabelledLogps, Logps, PairLogps, losses_of, remembered
from stages.train.objective.named import labelled, paired, reference_free
from stages.train.objective.named.loss import BY_NAME, Loss, Single
from stages.train.objective.report import report

ALL = [kind() for kind in get_args(Single)]
PAIRED = [loss for loss in ALL if not loss.labelled]
LABELLED = [loss for loss in ALL if loss.labelled]
DIVERGENCES = [{}, {"divergence": "forward_kl"}, {"divergence": "js"}, {"divergence": "alpha", "divergence_alpha": 0.5}]
logps = st.floats(-1e4, 0, width=32)
ROUNDING = 1e-6  # of a loss: the library's exp and log1p do not grow to the last bit where their arguments do


def by_name(loss: object) -> str:
    return loss.name if hasattr(loss, "name") else str(loss)


def pairs(dtype: torch.dtype = torch.float32, **columns: object) -> PairLogps:
    """Columns that are not given are zero; lengths are one."""
    size = max(len(np.atleast_1d(values)) for values in columns.values())
    known = {"chosen_length": 1.0, "rejected_length": 1.0, "mean_length": 1.0} | columns
    values = (np.broadcast_to(known.get(name, 0.0), size).copy() for name in PairLogps._fields)
    return PairLogps(*(torch.tensor(each, dtype=dtype) for each in values))


def completions(dtype: torch.dtype = torch.float32, **columns: object) -> LabelledLogps:
    size = max(len(np.atleast_1d(values)) for values in columns.values())
    values = (np.broadcast_to(columns.get(name, 0.0), size).copy() for name in LabelledLogps._fields)
    return LabelledLogps(*(torch.tensor(each, dtype=dtype) for each in values))


def random_pairs(seed: int = 0, size: int = 9) -> PairLogps:
    chance = np.random.default_rng(seed)
    sums = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    lengths = {f"{side}_length": chance.integers(1, 30, size) for side in ("chosen", "rejected")}
    rest = {"mean_length": lengths["chosen_length"].mean(), "margin": chance.uniform(0, 3, size)}
    return pairs(**{name: -chance.uniform(1, 40, size) for name in sums}, **lengths, **rest)


def only(seen: Logps, loss: Loss) -> float:
    return losses_of(seen, loss, {}).item()


def test_dpo_by_hand() -> None:
    # logits = (-1 - -3) - (-2 - -2.5) = 1.5; -log sigmoid(0.2 * 1.5) = log(1 + exp(-0.3))
    seen = pairs(chosen=-1, rejected=-3, ref_chosen=-2, ref_rejected=-2.5)
    assert only(seen, paired.Sigmoid(beta=0.2)) == pytest.approx(math.log1p(math.exp(-0.3)))
    smoothed = 0.9 * math.log1p(math.exp(-0.3)) + 0.1 * math.log1p(math.exp(0.3))
    assert only(seen, paired.Sigmoid(beta=0.2, label_smoothing=0.1)) == pytest.approx(smoothed)


def test_ipo_by_hand() -> None:
    # ((-1 + 2) / 2 - (-3 + 2.5) / 5 - 1 / 0.4)^2 = (0.5 + 0.1 - 2.5)^2
    seen = pairs(chosen=-1, rejected=-3, ref_chosen=-2, ref_rejected=-2.5, chosen_length=2, rejected_length=5)
    assert only(seen, paired.Ipo(beta=0.2)) == pytest.approx(3.61)


def test_kto_by_hand() -> None:
    # z = mean(1, 3) = 2; 1 - sigmoid(0.5 (4 - 2)) where desirable, 1 - sigmoid(0.5 (2 - 1)) where not, times 3
    seen = completions(
        completion=[-1, -2], ref_completion=[-5, -3], mismatched=[-4, -2], ref_mismatched=[-5, -5], label=[1, 0]
    )
    losses = losses_of(seen, labelled.Kto(beta=0.5, undesirable_weight=3), {})
    assert losses.tolist() == pytest.approx([1 / (1 + math.e), 3 / (1 + math.exp(0.5))])
    below = seen._replace(ref_mismatched=torch.zeros(2))  # a negative estimate of z counts as zero
    assert losses_of(below, labelled.Kto(beta=0.5), {})[0].item() == pytest.approx(1 / (1 + math.exp(2)))


def test_orpo_by_hand() -> None:
    # p(w) = 1/2 and p(l) = 1/4 a token: odds 1 and 1/3; -log sigmoid(log 3) = log(4 / 3). NLL: log 2 a token.
    seen = pairs(chosen=-3 * math.log(2), rejected=-2 * math.log(4), chosen_length=3, rejected_length=2, mean_length=3)
    assert only(seen, reference_free.Orpo(beta=0.5)) == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3))


def test_unlikelihood_by_hand() -> None:
    # Chosen: 3 nats over 3 tokens; rejected: 8 nats, a quarter of which counts for it, over chosen's mean length too.
    seen = pairs(chosen=-3, rejected=-8, chosen_length=3, rejected_length=4, mean_length=4)
    assert only(seen, reference_free.Unlikelihood(alpha=0.25)) == pytest.approx((3 - 0.25 * 8) / 4)
    assert only(seen, reference_free.Unlikelihood(alpha=0)) == only(seen, reference_free.Sft())


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def formula(loss: Loss, s: dict[str, np.ndarray]) -> np.ndarray:
    """What TRL lacks, from the papers, on float64 columns."""
    h = (s["chosen"] - s["ref_chosen"]) - (s["rejected"] - s["ref_rejected"])
    match loss.name:
        case "sigmoid":
            smooth = loss.label_smoothing
            return -(1 - smooth) * np.log(sigmoid(loss.beta * h)) - smooth * np.log(sigmoid(-loss.beta * h))
        case "r_dpo":
            longer = s["chosen_length"] - s["rejected_length"]
            return -np.log(sigmoid(loss.beta * h + loss.length_penalty * longer))
        case "odpo":
            margin = np.log(s["margin"]) if loss.margin_scale_of == "log" else s["margin"]
            return -np.log(sigmoid(loss.beta * h - loss.margin_scale * margin))
        case "dpop":
            lost = np.maximum(0, s["ref_chosen"] - s["chosen"])
            return -np.log(sigmoid(loss.beta * (h - loss.penalty * lost)))
        case "sigmoid_norm":
            lengths = s["chosen_length"], s["rejected_length"]
            means = (s["chosen"] - s["ref_chosen"]) / lengths[0] - (s["rejected"] - s["ref_rejected"]) / lengths[1]
            smooth = loss.label_smoothing
            return -(1 - smooth) * np.log(sigmoid(loss.beta * means)) - smooth * np.log(sigmoid(-loss.beta * means))
        case "rpo":
            return -np.log(sigmoid(loss.beta * h)) - loss.nll * s["chosen"] / s["chosen_length"]
        case "beta_dpo":
            beta = loss.beta * (1 + loss.adaptation * (h.mean() - 0.3))
            return -np.log(sigmoid(beta * h))
    raise AssertionError(loss.name)


@pytest.mark.parametrize(
    "loss",
    [
        paired.Sigmoid(label_smoothing=0.2),
        paired.RDpo(length_penalty=0.05),
        paired.Odpo(margin_scale=0.7),
        paired.Odpo(margin_scale=0.7, margin_scale_of="identity"),
        paired.Dpop(penalty=0.3),
        paired.SigmoidNorm(label_smoothing=0.2),
        paired.Rpo(nll=0.4),
        paired.BetaDpo(adaptation=0.05),
    ],
    ids=by_name,
)
def test_what_trl_lacks_is_its_papers_formula(loss: Loss) -> None:
    seen = random_pairs()
    columns = {name: column.double().numpy() for name, column in zip(seen._fields, seen, strict=True)}
    ours = losses_of(seen, loss, {"beta_dpo/value": 0.3})
    np.testing.assert_allclose(ours.numpy(), formula(loss, columns), rtol=1e-5)


def test_bco_keeps_the_middle_of_both_kinds_of_rewards() -> None:
    loss = labelled.Bco(beta=0.5)
    first = completions(completion=[2, 4, -6], label=[1, 1, 0])  # rewards 1, 2 and -3
    second = completions(completion=[8, -2], label=[1, 0])  # 4 and -1
    memory = remembered(first, loss, {})
    assert memory["bco/value"] == pytest.approx((1.5 - 3) / 2)
    memory = remembered(second, loss, memory)
    middle = ((1 + 2 + 4) / 3 + (-3 - 1) / 2) / 2
    assert memory["bco/value"] == pytest.approx(middle)
    expected = [math.log1p(math.exp(-(4 - middle))), math.log1p(math.exp(-1 - middle))]
    assert losses_of(second, loss, memory).tolist() == pytest.approx(expected)


def test_beta_dpo_remembers_a_moving_mean_of_margins() -> None:
    """Of the gap, which as in its authors' code is without beta."""
    loss = paired.BetaDpo(beta=0.5, momentum=0.75)
    seen = pairs(chosen=[2.0, 4.0])
    memory = remembered(seen, loss, {})
    assert memory == {"beta_dpo/value": pytest.approx(0.75)}
    assert remembered(seen, loss, memory) == {"beta_dpo/value": pytest.approx(0.75 * 0.75 + 0.25 * 3)}
    for beta in (0.5, 2.0):  # far below what came before, beta stands on a floor that does not depend on it
        losses = losses_of(seen, paired.BetaDpo(beta=beta), {"beta_dpo/value": 100.0})
        assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.001 * gap)) for gap in (2, 4)])


@given(logps, logps, logps, st.floats(0, 100, width=32))
def test_dpop_is_dpo_where_chosen_has_lost_nothing(a: float, b: float, c: float, penalty: float) -> None:
    kept = pairs(chosen=max(a, c), rejected=b, ref_chosen=min(a, c), ref_rejected=c)
    assert only(kept, paired.Dpop(penalty=penalty)) == only(kept, paired.Sigmoid())
    lost = pairs(chosen=min(a, c), rejected=b, ref_chosen=max(a, c), ref_rejected=c)
    assert only(lost, paired.Dpop(penalty=penalty)) >= only(lost, paired.Sigmoid()) * (1 - ROUNDING)
    assert only(lost, paired.Dpop(penalty=0)) == only(lost, paired.Sigmoid())


@given(logps, logps, st.floats(0.015625, 64, width=32))
def test_odpo_of_a_margin_of_one_is_dpo(a: float, b: float, margin: float) -> None:
    """Where log is taken; a larger margin asks for more."""
    one, other = (pairs(chosen=a, rejected=b, margin=each) for each in (1.0, margin))
    assert only(one, paired.Odpo()) == only(one, paired.Sigmoid())
    less, more = (only(each, paired.Odpo()) for each in ((one, other) if margin > 1 else (other, one)))
    assert more >= less * (1 - ROUNDING)


def test_sft_is_averaged_as_it_is_told() -> None:
    seen = pairs(chosen=[-2, -12], chosen_length=[1, 3], mean_length=2)
    for over, expected in (("step", (2 + 12) / 4), ("completion", (2 + 4) / 2), ("none", (2 + 12) / 2)):
        assert losses_of(seen, reference_free.Sft(mean_over=over), {}).mean().item() == pytest.approx(expected), over


@settings(max_examples=20)
@given(st.floats(0.5, 20), st.floats(0, 2), st.sampled_from(["simpo", "cpo_simpo", "alphapo"]))
def test_a_ratio_of_gamma_and_beta_is_a_gamma(beta: float, ratio: float, name: str) -> None:
    """One loss, whichever way it is written: also in what is hashed."""
    given_ratio = read({"name": name, "beta": beta, "gamma_beta_ratio": ratio})
    assert given_ratio == read({"name": name, "beta": beta, "gamma": ratio * beta})
    assert "gamma_beta_ratio" not in given_ratio.model_dump()
    assert read({"name": name, "gamma_beta_ratio": 0.5}).gamma == 1.0  # of the default beta
    assert read({"name": name, "gamma_beta_ratio": "5e-1", "beta": "1e1"}).gamma == 5.0  # YAML takes these for text
    assert read(given_ratio.model_dump()) == given_ratio


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "said"),
    [
        (100, 100, (1, 1), None),
        (120, 90, (1, 1), None),
        (100, 300, (3, 1), None),
        (
            90,
            100,
            (1, 1),
            r"90 x 1, undesirable ones 100 x 1: 0\.9 to 1, .*\.desirable_weight from 1\.11 to 1\.48, or "
            r"train\.loss\.undesirable_weight from 0\.675 to 0\.9$",
        ),
        (300, 100, (1, 2), r"300 x 1, undesirable ones 100 x 2: 1\.5 to 1"),
        (7, 0, (1, 1), r"no completion is undesirable"),
    ],
)
def test_kto_says_where_kinds_are_out_of_balance(
    desirable: int, undesirable: int, weights: tuple[float, float], said: str | None
) -> None:
    loss = labelled.Kto(desirable_weight=weights[0], undesirable_weight=weights[1])
    told = loss.advice(desirable, undesirable)
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0])
    assert labelled.Bco().advice(desirable, undesirable) == paired.Sigmoid().advice(desirable, undesirable) == []


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.01, 100))
def test_the_weights_that_kto_advises_are_in_balance(desirable: int, undesirable: int, weight: float) -> None:
    for told in labelled.Kto(desirable_weight=weight).advice(desirable, undesirable):
        least, most = map(float, re.search(r"_weight from (\S+) to (\S+), or", told).groups())
        assert labelled.Kto(desirable_weight=(least + most) / 2).advice(desirable, undesirable) == []
        least, most = map(float, re.search(r"undesirable_weight from (\S+) to (\S+)$", told).groups())
        both = labelled.Kto(desirable_weight=weight, undesirable_weight=(least + most) / 2)
        assert both.advice(desirable, undesirable) == []


def test_ld_dpo_counts_tails_less() -> None:
    # Of the rejected, -4 stands past the length of the chosen: at alpha 0.25 it counts -1.
    seen = pairs(chosen=-2, rejected=-7, rejected_tail=-4, ref_chosen=-2, ref_rejected=-5, ref_rejected_tail=-2)
    logits = (-2 - -4) - (-2 - -3.5)
    assert only(seen, paired.Sigmoid(beta=1.0, ld_alpha=0.25)) == pytest.approx(math.log1p(math.exp(-logits)))
    assert only(seen, paired.Sigmoid(ld_alpha=1.0)) == only(seen, paired.Sigmoid())


def test_a_sum_adds_its_terms_with_their_weights() -> None:
    seen = random_pairs()
    mpo = read([{"name": "sigmoid", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2, "beta": 0.3}, "sft"])
    parts = paired.Sigmoid(), paired.BcoPair(beta=0.3), reference_free.Sft()
    single = [losses_of(seen, loss, {}) for loss in parts]
    torch.testing.assert_close(losses_of(seen, mpo, {}), 0.8 * single[0] + 0.2 * single[1] + single[2])


LOG_2 = math.log(2)
AT_REFERENCE = {
    "sigmoid": LOG_2, "sigmoid_norm": LOG_2, "robust": LOG_2, "hinge": 1, "ipo": 25, "exo_pair": None, "discopop": None,
    "nca_pair": 2 * LOG_2, "bco_pair": 2 * LOG_2, "sppo_hard": 50, "apo_zero": 1, "apo_down": 1, "beta_dpo": LOG_2,
    "dpop": LOG_2, "aot": LOG_2, "aot_unpaired": LOG_2,
    "kto": 0.5, "apo_zero_unpaired": 0.5, "bco": LOG_2, "r_dpo": LOG_2,
}  # fmt: skip
AT_REFERENCE["exo_pair"] = -LOG_2 - 0.5 * (math.log(1e-3) + math.log(1 - 1e-3))
AT_REFERENCE["discopop"] = 0.5 * LOG_2 + 0.5


@settings(max_examples=20)
@given(st.lists(logps, min_size=2, max_size=2), st.lists(logps, min_size=2, max_size=2))
def test_a_policy_that_is_the_reference_has_a_known_loss(one: list[float], other: list[float]) -> None:
    seen = pairs(chosen=one, ref_chosen=one, rejected=other, ref_rejected=other)
    of_completions = completions(
        completion=one, ref_completion=one, mismatched=other, ref_mismatched=other, label=[1, 0]
    )
    for loss in ALL:
        if loss.name in AT_REFERENCE:
            losses = losses_of(of_completions if loss.labelled else seen, loss, {})
            assert losses.tolist() == pytest.approx([AT_REFERENCE[loss.name]] * 2, rel=1e-5), loss.name


@given(logps, logps, logps, logps)
def test_swapping_the_sides(a: float, b: float, c: float, d: float) -> None:
    there = pairs(chosen=a, rejected=b, ref_chosen=c, ref_rejected=d)
    back = pairs(chosen=b, rejected=a, ref_chosen=d, ref_rejected=c)
    for loss in (paired.Sigmoid(), reference_free.Orpo()):
        reports = [report(seen, losses_of(seen, loss, {}), loss) for seen in (there, back)]
        assert reports[0]["rewards/margins"] == -reports[1]["rewards/margins"]
        assert reports[0]["rewards/chosen"] == reports[1]["rewards/rejected"]
    # Of one pair: log s(x) - log s(-x) = x.
    both = [only(seen, paired.Sigmoid()) for seen in (there, back)]
    assert both[1] - both[0] == pytest.approx(0.1 * there.logits.item(), rel=1e-4, abs=1e-4)


@settings(max_examples=20)
@given(logps, logps)
def test_half_of_the_labels_wrong_says_nothing(a: float, b: float) -> None:
    there, back = pairs(chosen=a, rejected=b), pairs(chosen=b, rejected=a)
    for kind in (
        paired.Sigmoid,
        paired.SigmoidNorm,
        paired.ExoPair,
        reference_free.Cpo,
        paired.Aot,
        paired.AotUnpaired,
    ):
        loss = kind.model_construct(**kind().model_dump() | {"label_smoothing": 0.5, "nll": 0.0})
        assert only(there, loss) == pytest.approx(only(back, loss), rel=1e-5), loss.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", ALL, ids=by_name)
def test_nothing_overflows(loss: Loss, dtype: torch.dtype) -> None:
    chosen, rejected = [-1e4, 0.0, -1e4, 0.0], [0.0, -1e4, -1e4, 0.0]
    if loss.labelled:
        seen: Logps = completions(
            dtype, completion=chosen, ref_completion=rejected, mismatched=rejected, label=[1, 0, 1, 0]
        )
    else:
        seen = pairs(dtype, chosen=chosen, rejected=rejected, ref_chosen=rejected, ref_rejected=chosen)
    for each in DIVERGENCES if isinstance(loss, paired._OfDifference) else [{}]:
        leaves = type(seen)(*(column.clone().requires_grad_() for column in seen))
        losses = losses_of(leaves, type(loss)(**each), {})
        losses.sum().backward()
        assert losses.isfinite().all(), (each, losses)
        assert all(column.grad.isfinite().all() for column in leaves if column.grad is not None), each


@settings(max_examples=20)
@given(st.lists(st.tuples(logps, logps, logps, logps), min_size=2, max_size=6))
def test_aot_does_not_depend_on_the_order_of_pairs(rows: list[tuple[float, ...]]) -> None:
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    there, back = (pairs(**dict(zip(names, zip(*each, strict=True), strict=True))) for each in (rows, rows[::-1]))
    for loss in (paired.Aot(), paired.AotUnpaired()):
        assert losses_of(there, loss, {}).mean() == pytest.approx(losses_of(back, loss, {}).mean().item(), rel=1e-5)


def test_rewards_are_reported_in_the_same_terms() -> None:
    seen = random_pairs()
    of = [report(seen, losses_of(seen, loss, {}), loss) for loss in PAIRED if loss.reference and loss.beta == 0.1]
    for each in of:
        same = {key: value for key, value in each.items() if key != "loss"}
        assert same == {key: value for key, value in of[0].items() if key != "loss"}
    assert of[0]["rewards/margins"] == pytest.approx(0.1 * seen.logits.mean().item(), rel=1e-5)
    moved = torch.cat([seen.chosen - seen.ref_chosen, seen.rejected - seen.ref_rejected]).mean().item()
    assert of[0]["implicit_kl"] == pytest.approx(moved)
    free = report(seen, seen.chosen, reference_free.SimPo(beta=2.0))
    assert free["rewards/chosen"] == pytest.approx(2 * (seen.chosen / seen.chosen_length).mean().item())
    assert "implicit_kl" not in free
    labelled_ones = completions(completion=[-1, -3, -2], ref_completion=[-2, -2, -4], label=[1, 0, 0])
    of_labels = report(labelled_ones, labelled_ones.completion, labelled.Kto(beta=0.5))
    assert of_labels["rewards/chosen"] == pytest.approx(0.5)
    assert of_labels["rewards/rejected"] == pytest.approx((-0.5 + 1) / 2)
    assert of_labels["rewards/margins"] == pytest.approx(0.25)
    assert of_labels["rewards/accuracies"] == pytest.approx(2 / 3)


def read(given: object) -> Loss:
    return TypeAdapter(Loss).validate_python(given)


def test_a_loss_is_named_in_short_or_with_its_fields() -> None:
    assert read("ipo") == paired.Ipo()
    assert read({"beta": 0.3}) == paired.Sigmoid(beta=0.3)
    assert [term.name for term in read(["hinge", {"name": "sft", "weight": 0.1}]).terms] == ["hinge", "sft"]
    for loss in ALL:
        assert read(loss.model_dump()) == loss
        assert BY_NAME[loss.name] is type(loss)


@pytest.mark.parametrize(
    "given",
    [
        {"name": "ipo", "label_smoothing": 0.1},
        {"name": "sigmoid", "label_smoothing": 0.5},
        {"name": "exo_pair", "label_smoothing": 0},
        {"name": "aot", "wpo": True},
        {"name": "bco_pair", "divergence": "js"},
        {"name": "hinge", "divergence": "alpha"},
        {"name": "hinge", "divergence_alpha": 0.5},
        {"name": "orpo", "ld_alpha": 0.5},
        {"name": "sft", "beta": 0.1},
        {"name": "sft", "mean_over": "tokens"},
        {"name": "odpo", "margin_scale_of": "sqrt"},
        {"name": "simpo", "gamma": 1.0, "gamma_beta_ratio": 0.5},
        {"name": "simpo", "gamma_beta_ratio": -0.5},
        {"name": "simpo", "gamma_beta_ratio": "half"},
        {"name": "sigmoid", "weight": 0.5},
        ["sigmoid"],
        ["sigmoid", "kto"],
    ],
    ids=str,
)
def test_a_field_that_means_nothing_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        read(given)
