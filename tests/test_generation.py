"""Completions of an engine: the same in any company, with the model's own log-probs."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from conftest import make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.cpu_environment import CPU_ENVIRONMENT
from stages.engine.config import EngineResources, Sampling
from stages.engine.generation import Completion, Generator, Prompt, seed_of
from stages.engine.shared import SharedGenerator

SAMPLING = Sampling(num_samples=3, max_tokens=24, seed=7)
LONGEST = 60


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a matrix of 2048 columns, which oneDNN multiplies by one row otherwise than by two."""
    changed = {"intermediate_size": 2048, "max_position_embeddings": 128, "initializer_range": 0.1}
    return make_llama(tmp_path_factory.mktemp("wide"), **changed)


def prompts(number: int) -> list[tuple[str, list[int]]]:
    chance = np.random.default_rng(0)
    return [(f"{i}", chance.integers(5, 300, chance.integers(1, LONGEST)).tolist()) for i in range(number)]


@ray.remote(num_cpus=1, runtime_env={"env_vars": CPU_ENVIRONMENT})
def drawn(model: str, asked: list[tuple[EngineResources, list[tuple[Sampling, list[list[Prompt]]]]]]) -> Any:
    """Of each engine its completions for lists of prompts, asked for by a thread each."""
    found = []
    for resources, several in asked:
        engine = SharedGenerator(partial(Generator, model, "float32", LONGEST, SAMPLING, resources))
        engine.start()
        for sampling, calls in several:
            engine._generator.sampling = sampling  # one engine for all of them
            with ThreadPoolExecutor(len(calls)) as threads:
                made = threads.map(engine.generate, calls)
                found.append([each for call in zip(calls, made, strict=True) for each in zip(*call, strict=True)])
        seconds, loading = engine.spent()
        assert 0 < loading < seconds
        assert engine.spent() == (0, 0)
        del engine
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_a_sample_follows_from_its_prompt_and_seed_alone(wide_model: Path) -> None:
    """In another order, among others and alone, to the bit; and its log-probs are those of transformers."""
    all_of_them = prompts(24)
    few = EngineResources(max_num_seqs=5, max_num_batched_tokens=100)  # the longest prompts would be read in pieces
    ended = SAMPLING.model_copy(update={"num_samples": 1, "stop": ("e",)})
    greedy = SAMPLING.model_copy(update={"num_samples": 1, "temperature": 0.0})
    whole, cut, best, pieces, alone = ray.get(
        drawn.remote(
            str(wide_model),
            [
                (EngineResources(), [(SAMPLING, [all_of_them]), (ended, [all_of_them]), (greedy, [all_of_them[:4]])]),
                (few, [(SAMPLING, [all_of_them[:9:-1], all_of_them[9::-1]])]),
                (EngineResources(max_num_seqs=1), [(SAMPLING, [all_of_them[:2]])]),
            ],
        )
    )
    expected: dict[str, list[Completion]] = {name: made for (name, _), made in whole}
    for (name, _), made in (*pieces, *alone):
        for one, other in zip(made, expected[name], strict=True):
            assert (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)
            np.testing.assert_array_equal(one.token_logps, other.token_logps)
    own = AutoModelForCausalLM.from_pretrained(wide_model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(wide_model)
    for (_, ids), made in [*whole, *best]:
        assert len({tuple(each.ids) for each in made}) == len(made)  # a seed each
        for each in made:
            with torch.no_grad():
                logits = own(input_ids=torch.tensor([ids + each.ids])).logits[0, len(ids) - 1 : -1]
            logps = logits.log_softmax(-1).gather(-1, torch.tensor(each.ids)[:, None])[:, 0]
            np.testing.assert_allclose(each.token_logps, logps.numpy(), atol=1e-4)
            assert (each.finish == "stop") == (each.ids[-1] == tokenizer.eos_token_id)
            assert each.finish == "stop" or len(each.ids) == SAMPLING.max_tokens
            if len(made) == 1:
                assert each.ids == logits.argmax(-1).tolist()
    assert any("e" in each.text for made in expected.values() for each in made)
    for (name, _), (each,) in cut:
        assert each.text == expected[name][0].text.split("e")[0]


@settings(deadline=None)
@given(st.integers(), st.text(), st.integers(0, 99))
def test_each_sample_has_a_seed_of_its_own(seed: int, prompt: str, number: int) -> None:
    seeds = {seed_of(seed + s, prompt + p, number + n) for s in (0, 1) for p in ("", "0") for n in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= each < 2**63 for each in seeds)


def test_samples_that_cannot_differ_are_refused() -> None:
    with pytest.raises(ValidationError, match="temperature: 0 draws the same completion 2 times"):
        Sampling(num_samples=2, temperature=0)
    with pytest.raises(ValidationError, match="empty text"):
        Sampling(stop=("",))
