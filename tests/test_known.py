"""A set that grew costs what it grew by; the numbers are those of a full rescore."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Project, make_project

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.names import number_of, part_name
from stages.pool.alike import alike
from stages.score import known
from stages.score.config import ScoreResources
from stages.score.torch_scorer import TorchScorer


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ray_cluster: str) -> Project:  # noqa: ARG001
    """200 triples that were scored, and two more in the source; not yet sharded again."""
    folder = tmp_path_factory.mktemp("grown")
    project = make_project(folder, tiny_model, num_triples=200)
    project.run(stages=["shard", "score"])
    make_project(folder, tiny_model, num_triples=202)
    return project


def test_only_new_pairs_reach_the_engine(grown: Project) -> None:
    parts = "shard.num_parts=6"  # the set that is known has 4
    grown.run(parts, stages=["shard"])
    assert grown.plan(parts)["score"].why.endswith("2 of 202 pairs are new to this reference")
    assert "new to this reference" not in grown.plan(parts, "score.dtype=bfloat16")["score"].why
    (done,) = grown.run(parts, stages=["score"]).values()
    assert (done.step.manifest.facts["scored"], done.step.manifest.facts["taken_over"]) == (2, 200)

    pairs = PreferencePairs(grown.plan(parts)["shard"].folder)
    scorer = TorchScorer(done.step.config, ScoreResources(), 128)
    for part in pairs.parts:
        rows = pairs.read(part)
        ours = ReferenceLogprobs(done.step.folder).read(part, rows)
        full = schema.logprobs_table(rows, scorer.token_logps(rows))
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            np.testing.assert_allclose(ours[column].to_numpy(), full[column].to_numpy(), atol=1e-4)


def test_of_many_parts_some_are_looked_at(grown: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = "shard.num_parts=7"
    grown.run(parts, stages=["shard"])
    monkeypatch.setattr(known, "LOOKED_AT", 4)
    told = re.search(r"about (\d+) of 202 pairs are new to this reference", grown.plan(parts)["score"].why)
    assert told is not None
    assert int(told[1]) <= 5  # 2 are, in one or two of 7 parts, of which every second one is read


@pytest.mark.parametrize("others", [4, 6, 5, 1])
def test_a_part_is_looked_for_where_its_pairs_can_be(others: int) -> None:
    for pair in range(60):
        assert number_of(part_name(pair)) == pair
        candidates = alike(number_of(part_name(pair % 4)), 4, others)
        assert pair % others in candidates
    assert len(candidates) == {4: 1, 6: 3, 5: 5, 1: 1}[others]


def test_a_damaged_part_is_scored_again(grown: Project) -> None:
    root = grown.folder / "damaged"
    (old,) = {
        path.parent for path in grown.folder.glob("runs/score/*/manifest.json") if len(parts_of(path.parent)) == 4
    }
    shutil.copytree(old, root / "score" / old.name)
    (root / "score" / old.name / "part-00001.parquet").write_bytes(b"PAR1 no more")
    there = f"cluster.root={root}"
    pairs = grown.run(there, stages=["shard"])["shard"].step.folder
    in_part = len(PreferencePairs(pairs).read("part-00001.parquet"))
    assert "2 of 202" not in grown.plan(there)["score"].why
    (done,) = grown.run(there, stages=["score"]).values()
    assert in_part <= done.step.manifest.facts["scored"] <= in_part + 2


def parts_of(folder: Path) -> list[Path]:
    return list(folder.glob("part-*.parquet"))
