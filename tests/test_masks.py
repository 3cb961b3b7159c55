"""Tokens that are not trained: context for the model, and nothing to scores, losses, lengths and tails."""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_logps import APART, CONFIGS, PAIRS, make, rounding
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from stages import spans
from stages.logps.layout import Layout, pack, pad
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import wrap
from stages.train.objective.losses import losses_of
from stages.train.objective.named import labelled, paired, reference_free
from stages.train.objective.report import report
from stages.train.objective.step_loss import StepLoss, Work, logps_of
from stages.train.pairs.batch import Batch

CPU = torch.device("cpu")
Ids = list[int]
Pair = tuple[Ids, Ids, Ids]
Both = tuple[Ids, Ids]

# A dialogue: the completions part early, and a user or a tool speaks in each of them.
DIALOGUES: list[Pair] = [
    ([5, 6, 7, 8], [9, 10, 2, 30, 31, 32, 2, 11, 12, 13, 2], [9, 14, 2, 33, 2, 15, 2, 34, 35, 2]),
    ([20, 21], [40, 41, 42, 43, 2], [40, 41, 44, 2]),
]
SPEECH: list[Both] = [([0, 3, 7, 11], [0, 3, 5, 7]), ([2, 5], [3, 4])]


def completions_with_spans(least: int = 1) -> st.SearchStrategy[tuple[Ids, Ids]]:
    """Ids of three kinds, so that starts coincide, and spans of them."""

    def of(ids: Ids) -> st.SearchStrategy[tuple[Ids, Ids]]:
        edges = st.sets(st.integers(0, len(ids)), min_size=2).map(sorted)
        return edges.map(lambda found: (ids, found[: len(found) // 2 * 2]))

    return st.lists(st.integers(2, 4), min_size=least, max_size=12).flatmap(of)


masked_pairs = st.tuples(
    st.lists(st.integers(2, 4), max_size=8), completions_with_spans(), completions_with_spans()
).map(lambda row: ((row[0], row[1][0], row[2][0]), (row[1][1], row[2][1])))


@settings(deadline=None)
@given(st.lists(completions_with_spans(), min_size=1, max_size=5), st.integers(0, 13))
def test_spans_of_a_column_are_those_of_its_rows(rows: list[tuple[Ids, Ids]], length: int) -> None:
    column = pa.chunked_array([pa.array([row], pa.list_(pa.int32())) for _, row in rows])
    assert spans.problem(column, np.array([len(ids) for ids, _ in rows])) is None
    assert spans.counts(column).tolist() == [spans.count(row) for _, row in rows]
    assert spans.counts(column[1:]).tolist() == [spans.count(row) for _, row in rows[1:]]
    assert spans.stops(column).tolist() == [row[-1] for _, row in rows]
    for ids, row in rows:
        marks = spans.marks(len(ids), row)
        assert marks.sum() == spans.count(row)
        left = spans.cut(row, length)
        assert spans.marks(len(ids), left).tolist() == (marks & (np.arange(len(ids)) < length)).tolist()
        assert spans.problem(
            pa.chunked_array([pa.array([left], pa.list_(pa.int32()))]), np.array([length])
        ) is None or (not left)


def same(one: Layout, other: Layout) -> None:
    for each in fields(Layout):
        left, right = getattr(one, each.name), getattr(other, each.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert torch.equal(left, right), each.name
        elif each.name == "stretches" and left is not None:
            assert (left.lengths, left.shared, left.contexts) == (right.lengths, right.shared, right.contexts)
        else:
            assert left == right


@pytest.mark.parametrize("lay_out", [partial(pack, multiple=64), pad])
def test_spans_of_all_tokens_change_no_tensor(lay_out: Any) -> None:
    """So a model that is trained on whole completions comes out as before, to the bit."""
    same(lay_out(PAIRS), lay_out(PAIRS, trained=[([0, len(a)], [0, len(b)]) for _, a, b in PAIRS]))


def test_context_is_an_input_and_no_target_and_what_comes_last_is_neither() -> None:
    layout = pack([([5, 6], [7, 8, 9, 10, 11], [7, 8, 12, 13])], trained=[([0, 1, 3, 4], [2, 3])])
    assert layout.input_ids.tolist() == [[5, 6, 7, 8, 9]]  # of rejected, all that is needed stands in chosen
    assert layout.targets.tolist() == [7, 10, 12]
    assert layout.sources.tolist() == [1, 4, 3]
    assert layout.owners.tolist() == [0, 0, 1]
    assert [lengths.tolist() for lengths in layout.lengths()] == [[2], [1]]
    assert layout.in_tail().tolist() == [0, 1, 0]
    rows = pad([([5, 6], [7, 8, 9, 10, 11], [7, 8, 12, 13])], trained=[([0, 1, 3, 4], [2, 3])])
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 0]]
    assert (rows.targets.tolist(), rows.sources.tolist()) == ([7, 10, 12], [1, 4, 8])


@cache
def model(name: str, dtype: torch.dtype = torch.float32) -> tuple[PairLogprobs, PreTrainedModel]:
    """Ours, and transformers' own."""
    config = CONFIGS[name] if name in CONFIGS else APART[name][0]
    reference = make(config).to(dtype)
    reference.set_attn_implementation("eager" if name in EAGER else "sdpa")
    return wrap(make(config).to(dtype), name), reference


ONLY_FLOAT32 = ("gpt_oss",)  # its experts know no other
EAGER = ("gemma2", "bloom", "gpt_oss")  # SDPA leaves out what these do to scores; else it is as exact as its inputs


def own_sums(model: PreTrainedModel, pairs: Sequence[Pair], trained: Sequence[Both]) -> torch.Tensor:
    """[2B]: by the model's own logits, with labels of -100 where a token is not trained; one whole sequence at a time.

    It is the model's own loss, but that this one is always taken in float32.
    """
    sums = []
    for (prompt, *sides), both in zip(pairs, trained, strict=True):
        for side, row in zip(sides, both, strict=True):
            labels = torch.tensor([[-100] * len(prompt) + np.where(spans.marks(len(side), row), side, -100).tolist()])
            output = model(input_ids=torch.tensor([prompt + side]), labels=labels, use_cache=False)
            total = -cross_entropy(output.logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
            if counted := int((labels[0, 1:] != -100).sum()):  # nothing predicts the first token of all
                torch.testing.assert_close(-output.loss.double() * counted, total.double(), rtol=1e-5, atol=1e-5)
            sums.append(total)
    return torch.stack(sums)


def assert_as_with_labels(name: str, dtype: torch.dtype, pairs: Sequence[Pair], trained: Sequence[Both]) -> None:
    """To 1e-5 of each value and of each weight's gradient, in double precision, and in float32 against it."""
    ours, theirs = model(name, dtype)[0], model(name, torch.float32 if name in ONLY_FLOAT32 else torch.float64)[1]
    layout = ours.lay_out(pairs, trained)
    sums = torch.stack(layout.sums(ours(layout)), 1).flatten()
    expected = own_sums(theirs, pairs, trained)
    torch.testing.assert_close(sums.double(), expected.double(), rtol=1e-5, atol=1e-9)
    slopes = torch.linspace(-1, 2, len(sums))
    bound = rounding(ours, layout, sums, slopes)
    for each, values in ((ours, sums), (theirs, expected)):
        each.zero_grad()
        if values.requires_grad:
            (values * slopes).sum().backward()
    gradients = {key: weight.grad for key, weight in theirs.named_parameters() if weight.grad is not None}
    found = {key: weight.grad for key, weight in ours.causal_lm.named_parameters() if weight.grad is not None}
    for key, gradient in gradients.items():
        assert (found[key] - gradient).norm() <= 1e-5 * gradient.norm() + bound, key


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in ("llama", "gemma2", "mistral", "gpt_neox", "bloom", "gpt_oss")
        for dtype in (torch.float32, torch.float64)
        if dtype == torch.float32 or name not in ONLY_FLOAT32
    ],
)
def test_log_probs_and_gradients_are_those_of_labels_of_minus_100(name: str, dtype: torch.dtype) -> None:
    """Prompts shared (packed), and for bloom apart (padded)."""
    assert model(name, dtype)[0].shares_prompts == (name in CONFIGS)
    assert_as_with_labels(name, dtype, DIALOGUES, SPEECH)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["llama", "bloom"]), st.lists(masked_pairs, min_size=1, max_size=3))
@example("llama", [(([], [3], [4]), ([0, 1], [0, 1]))])
# Queries and keys of the upper layer have no gradient: what stands before the tokens that they choose from is alike.
@example("llama", [(([], [2, 2, 2], [2]), ([0, 1, 2, 3], [0, 1])), (([], [2], [2, 2]), ([0, 1], [0, 2]))])
# Terms cancel but for rounding: all tokens are one, and so are the two distributions that the sides are taken from.
@example("llama", [(([2], [2, 2], [2]), ([0, 2], [0, 1]))])
def test_any_spans(name: str, rows: list[tuple[Pair, Both]]) -> None:
    assert_as_with_labels(name, torch.float64, *map(list, zip(*rows, strict=True)))


def rows_of(pairs: Sequence[Pair], trained: Sequence[Both], weights: Sequence[float], **more: Any) -> list[dict]:
    """As PairSet reads them, with the log-probs of a model that is not the policy."""
    first, second = ("completion", "mismatched") if "label" in more else ("chosen", "rejected")
    with torch.no_grad():
        sums = own_sums(model("mistral")[1], pairs, trained).view(-1, 2).tolist()
    rows = []
    for i, ((prompt, *sides), both) in enumerate(zip(pairs, trained, strict=True)):
        row: dict[str, Any] = {"pair_id": f"{i}", "prompt_ids": prompt, "margin": None, "weight": weights[i]}
        row |= {key: values[i] for key, values in more.items()}
        for side, ids, own, total in zip((first, second), sides, both, sums[i], strict=True):
            parts = np.random.default_rng(ids).dirichlet(np.ones(spans.count(own)))
            row |= {f"{side}_ids": ids, f"{side}_trained": own, f"ref_{side}_logps": total}
            row[f"ref_{side}_token_logps"] = (total * parts).tolist()
        rows.append(row)
    return rows


def step_of(loss: Any, rows: list[dict], micro_batches: Sequence[Sequence[int]] | None = None) -> tuple:
    """(what was seen, losses, gradients of the policy) of a step, whose loss is a mean over `rows`."""
    ours = model("llama")[0]
    ours.zero_grad()
    work = [
        Work(partial(Batch.of, [rows[i] for i in part], ours, CPU), torch.tensor(part), torch.ones(len(part)))
        for part in micro_batches or [range(len(rows))]
    ]
    step = StepLoss(loss, ours, work, len(rows), {})
    for piece in work:
        (step.learn(piece)[0] / len(rows)).backward()
    gradients = torch.cat([weight.grad.flatten() for weight in ours.parameters() if weight.grad is not None])
    return *step.learned(), gradients


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("weights", "shares"), [((1.0, 1.0), True), ((0.5, 3.0), True), ((0.5, 3.0), False)])
def test_a_loss_and_its_gradient_are_those_of_the_formula(weights: tuple[float, float], shares: bool) -> None:
    """DPO of dialogues, written out with transformers' loss: a weight is a factor of its pair's loss."""
    rows, (ours, theirs) = rows_of(DIALOGUES, SPEECH, weights), model("llama")
    ours.share_prompts(shares)
    seen, losses, gradients = step_of(paired.Sigmoid(beta=0.3), rows, [[1], [0]])
    ours.share_prompts(True)
    chosen, rejected = own_sums(theirs, DIALOGUES, SPEECH).view(-1, 2).unbind(1)
    reference = torch.tensor([row["ref_chosen_logps"] - row["ref_rejected_logps"] for row in rows])
    expected = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected - reference))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert (seen.chosen_length.tolist(), seen.rejected_length.tolist()) == ([7, 3], [5, 1])
    theirs.zero_grad()
    (expected * torch.tensor(weights)).mean().backward()
    wanted = [weight.grad.flatten() for weight in theirs.parameters() if weight.grad is not None]
    for gradient, theirs_of_it in zip(gradients.split(list(map(len, wanted))), wanted, strict=True):
        assert (gradient - theirs_of_it).norm() < 1e-5 * theirs_of_it.norm()
    assert report(seen, losses, paired.Sigmoid(beta=0.3))["loss"] == pytest.approx(losses.mean().item())  # unweighted


def test_tails_are_of_trained_tokens() -> None:
    """LD-DPO: of chosen's 7 trained tokens, the last 2 are past the 5 of rejected, whatever stands between them."""
    batch = Batch.of(rows_of(DIALOGUES, SPEECH, (1, 1)), model("llama")[0], CPU)
    values = torch.arange(len(batch.layout.targets), dtype=torch.float32) + 1
    seen = logps_of(batch, values)
    assert seen.chosen.tolist() == [28, 13 + 14 + 15]
    assert seen.chosen_tail.tolist() == [6 + 7, 14 + 15]
    assert seen.rejected_tail.tolist() == [0, 0]
    less = losses_of(seen, paired.Sigmoid(ld_alpha=0.5), {})
    cut = seen._replace(
        chosen=seen.chosen - 0.5 * seen.chosen_tail, ref_chosen=seen.ref_chosen - 0.5 * seen.ref_chosen_tail
    )
    torch.testing.assert_close(less, losses_of(cut, paired.Sigmoid(), {}))


@pytest.mark.usefixtures("alone")
def test_terms_of_the_step_s_tokens_count_trained_tokens() -> None:
    seen, losses, _ = step_of(reference_free.Sft(), rows_of(DIALOGUES, SPEECH, (1, 1)))
    chosen = own_sums(model("llama")[1], DIALOGUES, SPEECH).view(-1, 2)[:, 0]
    assert losses.mean().item() == pytest.approx(-chosen.sum().item() / 10, rel=1e-5)
    assert seen.mean_length.tolist() == [5, 5]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "loss", [paired.Sigmoid(), paired.Ipo(ld_alpha=0.5), reference_free.Orpo(), paired.Sigmoid(wpo=True)], ids=str
)
def test_a_pair_of_weight_2_is_the_pair_twice(loss: Any) -> None:
    """In sums over the pairs; a mean is divided by the number of rows, whatever they weigh."""
    pairs, trained = [*DIALOGUES, DIALOGUES[0]], [*SPEECH, SPEECH[0]]
    thrice = step_of(loss, rows_of(pairs, trained, (1, 1, 1)))[2] * 3
    # SFT's term is divided by the step's mean length, which a weight does not change.
    weighted = step_of(loss, rows_of(DIALOGUES, SPEECH, (2, 1)))[2] * 2
    if isinstance(loss, reference_free.Orpo):
        lengths = [spans.count(both[0]) for both in trained]
        plain = step_of(reference_free.Sft(), rows_of(DIALOGUES, SPEECH, (2, 1)))[2] * 2
        weighted = weighted + plain * (sum(lengths[:2]) / 2 / (sum(lengths) / 3) - 1)
    assert (weighted - thrice).norm() < 1e-4 * thrice.norm()


@pytest.mark.usefixtures("alone")
def test_weights_of_labelled_completions_leave_the_step_s_kl_as_it_is() -> None:
    pairs, trained, labels = [*DIALOGUES, DIALOGUES[1]], [*SPEECH, ([0, 2], [1, 3])], [True, False, True]
    by_weight = {
        weights: step_of(labelled.Kto(), rows_of(pairs, trained, weights, label=labels), [[2, 0], [1]])
        for weights in ((1, 1, 1), (3, 1, 1), (1, 2, 0))
    }
    losses = [each[1].tolist() for each in by_weight.values()]
    assert all(each == pytest.approx(losses[0]) for each in losses)
    # Linear in the weights: g(3, 1, 1) = g(1, 1, 1) + 2 of the first; g(1, 2, 0) = g + of the second - of the third.
    one, heavier, other = (each[2] for each in by_weight.values())
    single = [step_of(labelled.Kto(), rows_of(pairs, trained, row, label=labels))[2] for row in np.eye(3).tolist()]
    assert (sum(single) - one).norm() < 1e-4 * one.norm()
    assert (one + 2 * single[0] - heavier).norm() < 1e-4 * one.norm()
    assert (one + single[1] - single[2] - other).norm() < 1e-4 * one.norm()


def test_a_loss_of_ranks_belongs_to_the_pair_that_has_the_rank() -> None:
    """AOT: what is sorted comes back to its pair, so that a weight meets the loss whose slope its log-probs have."""
    batch = Batch.of(rows_of([*DIALOGUES, *DIALOGUES], [*SPEECH, *SPEECH], (1, 1, 1, 1)), model("llama")[0], CPU)
    seen = logps_of(batch, torch.randn(len(batch.layout.targets), generator=torch.Generator().manual_seed(1)))
    chosen = seen.chosen.clone().requires_grad_()
    losses = losses_of(seen._replace(chosen=chosen), paired.Aot(), {})
    for i, each in enumerate(losses):
        (slope,) = torch.autograd.grad(each, chosen, retain_graph=True)
        assert slope.nonzero().flatten().tolist() == [i]
    both = losses_of(seen._replace(chosen=chosen), paired.AotUnpaired(), {})
    order = seen.chosen_logratios.argsort(), seen.rejected_logratios.argsort()
    logits = 0.1 * (seen.chosen_logratios[order[0]] - seen.rejected_logratios[order[1]])
    assert both.sum().item() == pytest.approx(-torch.nn.functional.logsigmoid(logits).sum().item(), rel=1e-6)
