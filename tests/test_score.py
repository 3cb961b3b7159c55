"""Scoring: two backends that agree, and parts that are made once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Project
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import schema, spans
from stages.artifacts import Manifest, PreferencePairs, ReferenceLogprobs
from stages.config import Elastic
from stages.errors import ContractError, RecipeError
from stages.score.config import Acceptance, ScoreConfig, ScoreResources
from stages.score.run import score
from stages.score.torch_scorer import TorchScorer

LONGEST = 256  # positions of the tiny model


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> PreferencePairs:
    """24 pairs in two parts, with turns in their completions that are not trained; one fills the model's context."""
    work, chance = tmp_path_factory.mktemp("dialogues"), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(24):
        row: dict[str, Any] = {"pair_id": f"{number:032x}", "split": "train", "source": "-", "source_row": number}
        row["prompt_ids"] = chance.integers(5, 300, chance.integers(1, 20)).tolist() if number > 1 else []
        start = chance.integers(5, 300, 3).tolist()  # of both completions
        for side in schema.PAIR_SIDES:
            row[f"{side}_ids"] = start + chance.integers(5, 300, chance.integers(5, 30)).tolist()
            edges = chance.choice(len(row[f"{side}_ids"]), 2 * int(chance.integers(1, 4)), replace=False)
            row[f"{side}_trained"] = sorted(edges.tolist())
            if number < 2:  # nothing comes before their first trained token, and one has no other
                row[f"{side}_trained"] = [0, 1 + 3 * (number or side == "chosen")]
        rows.append(row | {"weight": 1.0})
    rows[0] |= {"chosen_ids": chance.integers(5, 300, LONGEST - len(rows[0]["prompt_ids"])).tolist()}
    rows[0] |= {"chosen_trained": [2, 9, 40, len(rows[0]["chosen_ids"])]}
    for part in range(2):
        table = pa.Table.from_pylist(rows[part::2], schema=schema.PAIRS)
        schema.write_part(schema.validate(table, schema.PAIRS, "-"), work / f"part-{part:05d}.parquet")
    facts = {"pairs": 24, "tokens": 0, "longest": LONGEST}
    Manifest("shard", "0" * 64, {}, [], facts, {}).write(work)
    return PreferencePairs(work)


def test_scores_are_of_trained_tokens(
    dialogues: PreferencePairs, trained: Project, tiny_model: Path, tmp_path: Path
) -> None:
    """Both backends, of a policy as it was exported, as transformers' own loss with labels of -100, here in double
    precision; and training's forward pass on the same columns."""
    policy = trained.plan()["train"].folder / "policy"
    own, before = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        for folder in (policy, tiny_model)
    )
    moved = 0.0  # by training
    for backend in ("vllm", "torch"):
        out, accept = tmp_path / backend, Acceptance(calibration_pairs=8, max_token_difference=1e-4)
        config = ScoreConfig(model=str(policy), backend=backend, dtype="float32", accept=accept)
        facts = score(config, pairs=dialogues, out=out, resources=ScoreResources())
        assert facts["calibration"]["per token"]["max"] < 1e-4
        for part in dialogues.parts:
            pairs = dialogues.read(part)
            scored = ReferenceLogprobs(out).read(part, pairs).to_pylist()
            for pair, found in zip(pairs.to_pylist(), scored, strict=True):
                for side in schema.PAIR_SIDES:
                    marks = spans.marks(len(pair[f"{side}_ids"]), pair[f"{side}_trained"])
                    ids = torch.tensor([pair["prompt_ids"] + pair[f"{side}_ids"]])
                    labels = ids.clone()
                    labels[0, : len(pair["prompt_ids"])] = -100
                    labels[0, len(pair["prompt_ids"]) :][torch.from_numpy(~marks)] = -100
                    with torch.no_grad():
                        given = {"input_ids": ids, "labels": labels, "num_items_in_batch": 1}
                        total = -own(**given).loss.item()
                        moved = max(moved, abs(total + before(**given).loss.item()))
                    values = found[f"ref_{side}_token_logps"]
                    assert len(values) == marks.sum()
                    assert found[f"ref_{side}_logps"] == pytest.approx(sum(values), rel=1e-6)
                    assert found[f"ref_{side}_logps"] == pytest.approx(total, rel=1e-5)
    assert moved > 0.1  # it is the trained policy that was scored


def test_compiled_layers_compute_the_same(trained: Project, tiny_model: Path) -> None:
    pairs = PreferencePairs(trained.plan()["shard"].folder)
    table, config = pairs.read(pairs.parts[0]), ScoreConfig(model=str(tiny_model), backend="torch", dtype="float32")
    plain, compiled = (
        TorchScorer(config, ScoreResources(compile=each, max_tokens_per_batch=200), 64) for each in (False, True)
    )
    expected, found = (np.concatenate(scorer.token_logps(table)) for scorer in (plain, compiled))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert all(layer._compiled_call_impl for layer in compiled.model.layers)


def test_compiling_without_a_compiler_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = ScoreConfig(model=str(tiny_model), backend="torch", dtype="float32")
    with pytest.raises(RecipeError, match=r"needs a C\+\+ compiler on every node, and no-such-compiler is not there"):
        TorchScorer(config, ScoreResources(compile=True), 64)


def test_a_rerun_makes_only_what_is_missing(trained: Project, tmp_path: Path) -> None:
    step, pairs = trained.plan()["score"], PreferencePairs(trained.plan()["shard"].folder)
    whole = {part: (step.folder / part).read_bytes() for part in pairs.parts}
    for part in pairs.parts[1:]:
        (tmp_path / part).write_bytes(whole[part])
    times = {part: (tmp_path / part).stat().st_mtime_ns for part in pairs.parts[1:]}
    score(step.config, pairs=pairs, out=tmp_path, resources=ScoreResources(max_tokens_per_batch=100))
    assert {part: (tmp_path / part).stat().st_mtime_ns for part in pairs.parts[1:]} == times
    made = ReferenceLogprobs(tmp_path).read(pairs.parts[0], pairs.read(pairs.parts[0]))
    known = ReferenceLogprobs(step.folder).read(pairs.parts[0], pairs.read(pairs.parts[0]))
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        np.testing.assert_allclose(made[column].to_numpy(), known[column].to_numpy(), atol=1e-4)


def test_a_pool_that_grows_writes_the_same(trained: Project, tmp_path: Path) -> None:
    step, pairs = trained.plan()["score"], PreferencePairs(trained.plan()["shard"].folder)
    score(step.config, pairs=pairs, out=tmp_path, resources=ScoreResources(actors=Elastic(min=1, max=2)))
    for part in pairs.parts:
        assert (tmp_path / part).read_bytes() == (step.folder / part).read_bytes()


def test_a_damaged_part_of_pairs_is_named(trained: Project, tmp_path: Path) -> None:
    folder = trained.plan()["shard"].folder
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "part-00001.parquet").write_bytes(b"PAR1 no more")
    config = trained.plan()["score"].config
    with pytest.raises(ContractError, match=r"part-00001\.parquet cannot be read as Parquet.*--only shard"):
        score(config, pairs=PreferencePairs(tmp_path), out=tmp_path / "out", resources=ScoreResources())


def test_too_many_pairs_without_log_probs_stop_the_stage(trained: Project, tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=False)
    newline = AutoTokenizer.from_pretrained(tiny_model)("\n").input_ids[0]  # stands in every prompt
    model.model.embed_tokens.weight.data[newline] = np.nan
    model.save_pretrained(tmp_path / "model")
    config = trained.plan("score.model=" + str(tmp_path / "model"))["score"].config
    pairs, out = PreferencePairs(trained.plan()["shard"].folder), tmp_path / "out"
    with pytest.raises(
        ContractError, match=r"40 of 40 pairs could not be scored.*the log-prob of trained token 0 is nan"
    ):
        score(config, pairs=pairs, out=out, resources=ScoreResources())
    assert len(pq.read_table(out / "rejects.parquet")) == 40


def test_an_engine_takes_most_of_a_gpu_and_little_of_a_machine() -> None:
    shares = [ScoreResources(gpus_per_actor=gpus).memory_share for gpus in (0, 1, 8)]
    assert shares == [0.3, 0.85, 0.85]
    assert ScoreResources(gpus_per_actor=1, memory_fraction=0.5).memory_share == 0.5
