"""The paper's experiment: what it plans, and what is said of numbers. Nothing is trained here."""

import gzip
import itertools
import json
import random
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from infra.frontier.__main__ import CLUSTER, PLACES, RECIPES
from infra.frontier.curve import Points, best_of, kl_of_best, range_of, reached, share
from infra.frontier.draw import draw
from infra.frontier.measure import Trial, figures_of
from infra.frontier.reviews import Sizes, prepare
from infra.frontier.sweeps import MAIN, SCALES, SEEDS
from pipeline.identity import Digests
from pipeline.plan import plan
from pipeline.store import Store
from pipeline.sweep.grid import trials

GOOD, BAD = ("a wonderful", "the loveliest", "my favourite"), ("an awful", "the dullest", "my least liked")


def test_what_is_reached_within_a_kl() -> None:
    # The hull of (0, 1), (1, 3) and (4, 4): (2, 3.1) lies below the line from the second to the third.
    points = Points([4, 1, 2], [4, 3, 3.1])
    at = np.array([0, 0.5, 1, 2.5, 4, 9])
    np.testing.assert_allclose(reached(points, 1, at), [1, 2, 3, 3.5, 4, 4])
    # What is worse than the reference does not count, nor an estimate below 0 for more than it is.
    np.testing.assert_allclose(reached(Points([1, -0.1], [0, 2]), 1, np.array([0, 1])), [2, 2])
    np.testing.assert_allclose(reached(Points([1], [0]), 1, np.array([0, 1])), [1, 1])


def test_the_share_of_the_range() -> None:
    # From (0, 0): one rises to 1 at a KL of 1 and stays; the other rises to 2 at 2. Alike up to 1; past it the other is
    # above, and only one of both has gone past 1.5.
    one, other = Points([1, 1.5], [1, 1]), Points([2], [2])
    assert range_of(one, other) == 1.5
    assert share(one, other, 0) == pytest.approx(2 / 3, abs=0.005)
    assert share(other, one, 0) == 1
    assert share(one, Points([3], [-1]), 0) == 1


@given(st.lists(st.integers(0, 5), min_size=3, max_size=6), st.integers(1, 3))
def test_the_best_of_n_is_the_mean_over_all_choices(rewards: list[int], n: int) -> None:
    wanted = np.mean([max(chosen) for chosen in itertools.combinations(rewards, n)])
    assert best_of(np.array([rewards]), n)[0] == pytest.approx(wanted)
    assert kl_of_best(1) == 0


def some_trials() -> list[Trial]:
    """DPO's policies have twice the reward of the others at the same KL, on 12 prompts."""
    chance = np.random.default_rng(0)
    found = []
    sweeps = [(MAIN, seed, 2.0) for seed in SEEDS] + [("IPO", 0, 1.0), ("unlikelihood", 0, 1.0)]
    for drawn, (method, seed, gain) in enumerate(sweeps):
        for kl in (0.5, 2.0):
            noise = {f"p{i}": chance.normal(0, 0.01) for i in range(12)}
            kls = {name: kl + each for name, each in noise.items()}
            rewards = {name: gain * np.sqrt(kl) + each for name, each in noise.items()}
            found.append(
                Trial(method, seed, drawn, {"k": kl}, kls, rewards, {name: [0.0, each] for name, each in noise.items()})
            )
    return found


def test_figures_and_their_picture(tmp_path: Path) -> None:
    figures = figures_of(some_trials())
    (shares,) = (told for name, told in figures.items() if name.startswith("share"))
    assert {name: told["by seed"] for name, told in shares.items()} == {
        name: [1.0, 1.0, 1.0] for name in ("IPO", "unlikelihood", "all of them")
    }
    assert shares["IPO"]["up to"] == pytest.approx(2, abs=0.02)
    assert (
        figures["reference"]["samples"] == 12 * 2 * 5
    )  # what the five sweeps have asked, and not each of their trials
    assert [each["n"] for each in figures["best of n"]] == [1, 2, 4, 8]
    read = json.loads(json.dumps(figures))
    made = draw(read, "a title", tmp_path, "toy")
    assert [path.name for path in made] == ["toy-light.svg", "toy-dark.svg"]
    for path in made:
        assert all(
            name in path.read_text() for name in (f"{MAIN}, 3 seeds", "IPO", "unlikelihood", "best of n", "a title")
        )
    before = made[0].read_bytes()
    assert draw(read, "a title", tmp_path, "toy")[0].read_bytes() == before


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From 240 reviews whose first words say all."""
    folder, chance = tmp_path_factory.mktemp("reviews"), random.Random(0)
    with gzip.open(folder / "reviews.gz", "wt") as lines:
        for i in range(240):
            split = ("train", "test", "unlabelled")[i % 3]
            told = chance.choice(GOOD if i % 2 else BAD)
            text = (
                f"Film {i} in it was {told} film that we have seen. It was long, and we were {i} minutes late for it."
            )
            label = None if split == "unlabelled" else i % 2
            lines.write(json.dumps({"split": split, "text": text, "label": label}) + "\n")
    prepare(folder / "reviews.gz", RECIPES, folder / "made", Sizes(100, 16, 300, 64, 1))
    return folder / "made"


def test_reviews_become_what_the_scale_needs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads((prepared / "facts.json").read_text())
    assert facts["accuracy on test"] == 1
    prompts = [json.loads(line)["prompt"] for line in (prepared / "prompts.jsonl").read_text().splitlines()]
    assert prompts[0] == "Film 182 in it"  # the first of the last quarter of the unlabelled
    learnt = (prepared / "sentences.jsonl").read_text()
    assert "Film 2 in it" in learnt
    assert "Film 182 " not in learnt
    monkeypatch.syspath_prepend(prepared)
    positive = runpy.run_path(str(prepared / "classifier.py"))["positive"]
    assert positive("It was", " a wonderful film.") > 0.5 > positive("It was", " an awful film.")
    # The bias is not penalised, so the mean probability of what it was fitted to is the share of positive reviews.
    with gzip.open(prepared.parent / "reviews.gz", "rt") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
    assert np.mean([positive("", row["text"]) for row in rows]) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_one_scoring_serves_all_trainings(scale: str, prepared: Path, tmp_path: Path) -> None:
    """But that of KTO, which learns from labelled completions, of the same samples under the same judge."""
    recipe = (prepared if scale == "imdb" else RECIPES) / f"{scale}.yaml"
    source = prepared / "prompts.jsonl" if scale == "imdb" else RECIPES / "prefixes.jsonl"
    fixed = [f"cluster.root={tmp_path}", f"model={prepared / 'random'}", f"sample.source={source}", *PLACES]
    made: dict[str, set[str]] = {}
    seen = set()
    for sweep in SCALES[scale]:
        found, where = trials(recipe, CLUSTER, [*sweep.set_, *fixed], [sweep.grid], Digests(None))
        for trial in found:
            seen.add(trial.trained.fingerprint)
            for step in plan(trial.recipe, Store.open(where.root, where.work)):
                made.setdefault(step.name, set()).add(step.fingerprint)
    assert {name: len(each) for name, each in made.items()} == {
        "sample": 1, "judge": 1, "shard": 2, "score": 2, "train": len(seen), "evaluate": len(seen),
    }  # fmt: skip
    assert len(seen) >= 15
    assert {sweep.seed for sweep in SCALES[scale] if sweep.method == MAIN} == set(SEEDS)
    assert len({sweep.drawn for sweep in SCALES[scale]}) == len(SCALES[scale])


def test_the_prefixes_are_short_and_each_there_once() -> None:
    prompts = [json.loads(line)["prompt"] for line in (ROOT / RECIPES / "prefixes.jsonl").read_text().splitlines()]
    assert len(set(prompts)) == len(prompts) >= 300
    assert all(len(prompt.rpartition("\n")[2].split()) <= 8 for prompt in prompts)
