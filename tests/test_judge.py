"""What judges say, and what pairs come of it; an endpoint that misbehaves is a real server on this machine."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from pipeline.recipe.load import load
from stages import schema
from stages.artifacts import Manifest
from stages.errors import ContractError, RecipeError
from stages.judge.answers import key_of
from stages.judge.config import DeltaJudge, FunctionJudge, JudgeResources, LlmJudge, RewardModel
from stages.judge.function import Function
from stages.judge.judges import Answer, Question
from stages.judge.pairing import pairs_of
from stages.judge.part_judge import Job, PartJudge, beside, kind_of, logs_of
from stages.judge.source import modules_of
from stages.samples import COMPLETIONS, Completions, Triples

KEY = "sk-very-secret-0123456789"


def rows_of(*texts: str, model: int = 0) -> list[dict[str, Any]]:
    return [{"model": model, "sample": i, "text": text} for i, text in enumerate(texts)]


def paired(config: Any, rows: list[dict[str, Any]], said: Callable[[Question], Answer]) -> Any:
    found = pairs_of("1" * 32, "p", rows, config, said)
    return [(a["text"], b["text"], margin) for a, b, margin in found.pairs] or (found.reason, found.detail)


def by_score(**fields: Any) -> FunctionJudge:
    return FunctionJudge(name="function", function="a:b", **fields)


def test_scores_make_pairs_as_the_recipe_says() -> None:
    def said(question: Question) -> Answer:
        return Answer(None, "error: no") if question[1] == "?" else Answer(float(question[1]))

    rows = rows_of("3", "1", "?", "2", "3", "")  # one failed, one is there twice, one says nothing
    assert paired(by_score(), rows, said) == [("3", "1", 2.0)]
    assert paired(by_score(pairing="all"), rows, said) == [("3", "1", 2.0), ("3", "2", 1.0), ("2", "1", 1.0)]
    assert paired(by_score(pairing="all", min_margin=1), rows, said) == [("3", "1", 2.0)]
    assert paired(by_score(min_margin=2), rows, said)[0] == "fault"
    assert paired(by_score(min_margin=2), rows_of("3", "1"), said)[0] == "tie"
    assert paired(by_score(), rows_of("3", "3"), said)[0] == "few"
    assert paired(by_score(), rows_of("3", "?"), said) == ("fault", "error: no")
    others = {paired(by_score(pairing="best_random", seed=n), rows, said)[0][:2] for n in range(20)}
    assert others == {("3", "1"), ("3", "2")}


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1.0, 0.0, -1.0, None]), min_size=6, max_size=6), st.sampled_from(["best_worst", "all"])
)
def test_no_pair_is_labelled_by_a_failed_comparison(verdicts: list[float | None], pairing: Any) -> None:
    """Four completions, all six comparisons: chosen has beaten rejected in their own."""
    config = LlmJudge(name="llm", endpoint="http://-", model="-", pairing=pairing)
    asked: dict[tuple[str, ...], float | None] = {}

    def said(question: Question) -> Answer:
        value = verdicts[len(asked)]
        asked[question[1:]] = value
        return Answer(value) if value is not None else Answer(None, "time-out: ..")

    found = paired(config, rows_of(*"abcd"), said)
    won = {(pair if value > 0 else pair[::-1]) for pair, value in asked.items() if value}
    if isinstance(found, tuple):
        assert not won
        assert found[0] == ("fault" if None in verdicts else "tie")
    elif pairing == "all":
        assert {pair[:2] for pair in found} == won
    else:
        assert found[0][:2] in won


def test_of_a_stronger_and_a_weaker_model_nobody_is_asked() -> None:
    rows = [*rows_of("good", "same", ""), *rows_of("bad", "same", "x", model=1)]
    assert paired(DeltaJudge(name="delta"), rows, lambda _: pytest.fail("asked")) == [("good", "bad", None)]
    assert paired(DeltaJudge(name="delta"), rows_of("alone"), lambda _: pytest.fail("asked"))[0] == "few"


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Completions:
    """Two parts of three prompts with two completions each, as one model drew them."""
    folder = tmp_path_factory.mktemp("completions")
    for part in range(2):
        rows: list[dict[str, Any]] = []
        for number in range(3):
            prompt = [{"role": "user", "content": f"prompt {part}{number}"}]
            row = {"prompt_id": f"{part}{number}".ljust(32, "0"), "prompt": json.dumps(prompt), "prompt_ids": [5]}
            row |= {"source": "-", "source_row": 0, "model": 0, "ids": [6], "token_logps": [-1.0], "finish": "stop"}
            rows += [row | {"sample": 0, "text": f"good {number}"}, row | {"sample": 1, "text": f"bad {number}"}]
        schema.write_part(pa.Table.from_pylist(rows, schema=COMPLETIONS), folder / f"part-{part:05d}.parquet")
    facts = {"num_parts": 2, "num_models": 1, "chat": True}
    Manifest("sample", "0" * 64, {}, [], facts, {}).write(folder)
    return Completions(folder)


def judged(job: Job, parts: int = 2) -> list[dict[str, Any]]:
    """The callable of the pool in this process."""
    judge = PartJudge(job)
    return [
        row for number in range(parts) for row in judge(pa.table({"part": [f"part-{number:05d}.parquet"]})).to_pylist()
    ]


def faults_of(out: Path) -> Counter[str]:
    tables = [pq.read_table(path).to_pylist() for path in out.glob("answers-*.parquet")]
    return Counter(kind_of(row["fault"]) for rows in tables for row in rows if row["fault"])


def job_of(config: Any, completions: Completions, out: Path, known: Any = (), **resources: Any) -> Job:
    resources = {"retries": 1, "timeout_seconds": 0.5} | resources
    return Job(config, JudgeResources(**resources), completions, 2, {}, known, out)


def good_first(question: str, _: int) -> tuple[int, str]:
    return 200, "It is [[A]]" if question.index("good") < question.index("bad") else "It is [[B]]"


def test_an_endpoint_is_asked_in_both_orders_and_remembered(
    completions: Completions, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget stops it; then it goes on where it was; and another set costs nothing that is known."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(good_first)
    config = LlmJudge(name="llm", endpoint=server.endpoint, model="m", key_env="JUDGE_KEY")
    with pytest.raises(RecipeError, match=r"has made 7 requests, and cluster\.judge\.max_requests is 7"):
        judged(job_of(config, completions, tmp_path / "out", max_requests=7, requests_at_a_time=1))
    assert sum(server.asked.values()) == 7
    reports = judged(job_of(config, completions, tmp_path / "out", max_requests=50))
    assert sum(report["triples"] for report in reports) == 6
    # Three comparisons were whole, and of the fourth one order was asked twice.
    assert sum(server.asked.values()) == 13
    assert set(server.headers) == {f"Bearer {KEY}"}
    for row in pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist():
        assert json.loads(row["chosen"])[0]["content"].startswith("good")
        assert row["margin"] is None
    Manifest("judge", "0" * 64, {}, [], {"num_parts": 2}, {}).write(tmp_path / "out")
    known = [(Triples(tmp_path / "out"), 2)]
    again = judged(job_of(config, completions, tmp_path / "again", known))
    assert [report["asked"] for report in again] == [0, 0]
    assert sum(server.asked.values()) == 13
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_faults_are_counted_by_kind_and_label_nothing(
    completions: Completions, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def reply(question: str, times: int) -> tuple[int, Any]:
        if "prompt 00" in question:
            if times == 1:
                time.sleep(1)
            return 200, (time.sleep(0.1) or b" " for _ in range(50))  # a byte now and then
        if "prompt 01" in question:
            return 200, "I cannot say"
        if "prompt 02" in question:
            return 200, "[[A]]"  # whatever the order
        if "prompt 10" in question:
            return 401, {"error": f"Incorrect key: {KEY}"}
        if "prompt 11" in question:
            return (500, "busy") if times == 1 else good_first(question, times)
        return 200, None

    server = serve(reply)
    config = LlmJudge(name="llm", endpoint=server.endpoint, model="m", key_env="JUDGE_KEY")
    began = time.monotonic()
    reports = judged(job_of(config, completions, tmp_path / "out"))
    assert time.monotonic() - began < 4
    assert faults_of(tmp_path / "out") == {"time-out": 1, "garbage": 2, "contradiction": 1, "status 401": 1}
    assert [report["triples"] for report in reports] == [0, 1]
    for part, expected in ((0, 3), (1, 2)):
        aside = pq.read_table(tmp_path / "out" / beside(f"part-{part:05d}.parquet", "rejects")).to_pylist()
        assert [row["reason"] for row in aside] == ["fault"] * expected
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "***" in (logs_of(tmp_path / "out") / "part-00001.parquet.jsonl").read_text()
    stops = config.model_copy(update={"on_fault": "stop"})
    with pytest.raises(ContractError, match=r"failed for 3 of 3 questions of part-00000\.parquet.*on_fault is stop"):
        judged(job_of(stops, completions, tmp_path / "stops"))


def test_rubric_scores_are_numbers_of_the_scale(completions: Completions, serve: Any, tmp_path: Path) -> None:
    marks = {
        "good 0": "[[9]]",
        "bad 0": "[[2.5]]",
        "good 1": "[[11]]",
        "bad 1": "[[1]]",
        "good 2": "[[nan]]",
        "bad 2": "3",
    }
    server = serve(lambda question, _: (200, next(mark for text, mark in marks.items() if text in question)))
    config = LlmJudge(name="llm", endpoint=server.endpoint, model="m", mode="rubric")
    (report,) = judged(job_of(config, completions, tmp_path, requests_per_minute=3000), parts=1)
    assert (report["triples"], report["questions"], faults_of(tmp_path)) == (1, 6, {"garbage": 3})
    (triple,) = pq.read_table(tmp_path / "part-00000.parquet").to_pylist()
    assert triple["margin"] == 6.5


def test_a_key_that_is_not_there_is_named(completions: Completions, tmp_path: Path) -> None:
    config = LlmJudge(name="llm", endpoint="http://127.0.0.1:1", model="m", key_env="NO_SUCH_KEY")
    with pytest.raises(RecipeError, match="the environment variable NO_SUCH_KEY is not set"):
        judged(job_of(config, completions, tmp_path))


def test_a_function_that_fails_hangs_or_crashes_is_a_fault(completions: Completions, tmp_path: Path) -> None:
    """No pair has what it was asked for then, and the next call is another process's."""
    source = (
        "import os, time\n"
        "def b(prompt, completion):\n"
        "    while prompt[0]['content'] == 'prompt 11': pass\n"
        "    if completion == 'good 0': raise ValueError('no')\n"
        "    if completion == 'good 1': return float('nan')\n"
        "    if prompt[0]['content'] == 'prompt 12' and completion == 'bad 2': os._exit(3)\n"
        "    return len(completion)\n"
    )
    job = Job(by_score(), JudgeResources(timeout_seconds=0.5), completions, 2, {"a": source}, (), tmp_path)
    began = time.monotonic()
    reports = judged(job)
    assert time.monotonic() - began < 30
    assert [report["triples"] for report in reports] == [1, 0]
    assert faults_of(tmp_path) == {"error": 3, "garbage": 1, "time-out": 2}
    aside = pq.read_table(tmp_path / "rejects-00001.parquet").to_pylist()
    assert [row["detail"] for row in aside] == [
        "error: ValueError: no",
        "time-out: no answer in 0.5 seconds",
        "error: its process ended with 3",
    ]
    with pytest.raises(RecipeError, match=r"judge\.function a:b cannot be loaded: AttributeError: .* no attribute 'b'"):
        judged(Job(by_score(), JudgeResources(), completions, 2, {"a": ""}, (), tmp_path / "none"))
    with pytest.raises(RecipeError, match=r"^evaluate\.judge a:b cannot be loaded"):
        Function(by_score(), {"a": ""}, tmp_path / "none", 1.0, "evaluate.judge")
    with pytest.raises(RecipeError, match=r"^evaluate\.judge a:b: there is no a\.py"):
        modules_of("a:b", str(tmp_path), "evaluate.judge")
    stops = Job(by_score(on_fault="stop"), job.resources, completions, 2, job.modules, (), tmp_path / "stops")
    with pytest.raises(ContractError, match=r"failed for 2 of 6 questions.*on_fault is stop"):
        judged(stops, parts=1)


def test_a_reward_model_scores_as_transformers_does(completions: Completions, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "model")
    torch.manual_seed(0)
    size = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    for labels in (1, 2):
        model = LlamaForSequenceClassification(LlamaConfig(**size, **heads, num_labels=labels, pad_token_id=1)).eval()
        model.save_pretrained(tmp_path / "model")
        config = RewardModel(name="reward_model", model=str(tmp_path / "model"))
        out = tmp_path / f"out-{labels}"
        judged(job_of(config, completions, out, max_tokens_per_batch=100), parts=1)
        answers = {row["key"]: row["value"] for row in pq.read_table(out / "answers-00000.parquet").to_pylist()}
        assert len(answers) == 6
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        for row in completions.of_all_models(0).to_pylist():
            messages = [*json.loads(row["prompt"]), {"role": "assistant", "content": row["text"]}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
            value = logits[0] if labels == 1 else logits[1] - logits[0]
            key = key_of((json.dumps(json.loads(row["prompt"]), ensure_ascii=False), row["text"]))
            assert answers[key] == pytest.approx(value.item(), abs=1e-5)


def test_a_model_without_a_head_for_rewards_is_refused(
    completions: Completions, tiny_model: Path, tmp_path: Path
) -> None:
    config = RewardModel(name="reward_model", model=str(tiny_model))
    with pytest.raises(RecipeError, match=r"has no weights for score\.weight: it is no reward model"):
        judged(job_of(config, completions, tmp_path), parts=1)


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"name": "llm", "endpoint": "http://a", "model": "m", "question": "{prompt} {first}"}, "has no {second}"),
        ({"name": "function", "function": "judge.score"}, "judge.function"),
        ({"name": "oracle"}, "judge"),
        ({"name": "reward_model", "model": "m", "min_margin": -1}, "judge.min_margin"),
    ],
)
def test_what_no_judge_can_be_is_said(tmp_path: Path, judge: dict[str, Any], said: str) -> None:
    recipe, cluster = tmp_path / "recipe.yaml", tmp_path / "cluster.yaml"
    recipe.write_text(json.dumps({"model": "m", "sample": {"source": "x"}, "judge": judge}))
    cluster.write_text("{root: runs}")
    with pytest.raises(RecipeError, match=said):
        load(recipe, cluster, [])
