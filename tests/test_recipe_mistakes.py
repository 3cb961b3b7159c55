"""One message a mistake, whatever is typed where."""

import copy
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_recipe import GOOD, read

from pipeline.recipe.load import load
from stages.errors import RecipeError


def lines(tmp_path: Path, *overrides: str, **sections: object) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        read(tmp_path, *overrides, **sections)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.loss.beta=-1", "train.loss.beta: Input should be greater than 0 (given: -1)"),
        ("train.dtype=int8", "train.dtype: Input should be 'float32' or 'bfloat16' (given: 'int8')"),
        ("model=5", "model: Input should be a valid string (given: 5)"),
        ("model=null", "model: Field required"),
        ("score.model=5", "score.model: Input should be a valid string (given: 5)"),
        ("train=5", "train: Input should be a section with keys of its own, such as policy, starts_at_reference, "),
        ("shard=null", "shard.source: Field required"),
        (
            "score=false",
            "score: Input should be a section with keys of its own, such as model, backend, dtype (given: F",
        ),
        ("wandb=true", "wandb: Input should be a section with keys of its own, such as project, entity (given: True)"),
        ("train.loss=5", "train.loss: Input should be a loss: its name, a section with its name and fields, or a list"),
        ("train.loss=[]", "train.loss: List should have at least 2 items after validation, not 0 (given: [])"),
        ("train.loss=[5]", "train.loss.0: Input should be a loss: its name, a section"),
        ("train.loss=[dpo, {name: sft, wait: 2}]", "train.loss.1.wait: no such key; did you mean weight?"),
        ("train.loss={name: [ipo]}", "train.loss: there is no loss ['ipo']; did you mean ipo?"),
        (
            "rounds=x",
            "rounds: Input should be a valid integer, unable to parse string as an integer, or a section with keys of "
            "its own, such as count, sample, replay (given: 'x')",
        ),
        ("train.lr=true", "train.lr: Input should be a number (given: True)"),
        ("train.adam_betas=[true, 0.9]", "train.adam_betas.0: Input should be a number (given: True)"),
        ("train.loss=[dpo, {name: sft, weight: yes}]", "train.loss.1.weight: Input should be a number (given: True)"),
        ("train.lora.targets=5", "train.lora.targets: Input should be 'all-linear', or a valid list (given: 5)"),
        ("train.quantize=nf4", "train: quantize: nf4 is of weights that are not trained: set lora as well"),
        ("train={freeze: ['*'], lora: {}}", "train: lora trains nothing but adapters: leave freeze out, or name"),
        ("score.quantize=nf4", "score: quantize: nf4 is computed by backend: torch alone; vllm would round"),
        ("train.lora.targets=[5]", "train.lora.targets.0: Input should be a valid string (given: 5)"),
        (
            "shard.source=[s.jsonl]",
            "shard.source: a source is one name. For the first one at hand of several write first",
        ),
        ("shard={first_of: [5, s]}", "shard.first_of.0: Input should be a valid string (given: 5)"),
        ("shard={first_of: []}", "shard.first_of: Tuple should have at least 1 item"),
        ("shard.first_of=[s]", "shard: source and first_of are both given, and say the same thing. Keep one of them"),
        ("shard={sources: [{sorce: s}]}", "shard.sources.0.sorce: no such key; did you mean source?"),
        (
            "shard={sources: [{source: s, take: many}]}",
            "shard.sources.0.take: Input should be a valid integer, or a val",
        ),
        ("shard.where=n >", "shard.where: 'n >' is no expression: invalid syntax. It is made of columns"),
        ("shard.num_parts=many", "shard.num_parts: Input should be 'auto', or a valid integer"),
        (
            "cluster.train.workers=x",
            "train.workers: Input should be a valid integer, unable to parse string as an inte",
        ),
        (
            "cluster.train.workers=null",
            "train.workers: Input should be a valid integer, or a section with keys of its ",
        ),
        ("cluster.train.workers=true", "train.workers: Input should be a number (given: True)"),
        ("cluster.train.workers={min: 3}", "train.workers.max: Field required"),
        ("cluster.train.workers={min: 3, max: 1}", "train.workers: min 3 is more than max 1"),
        ("cluster.train.workers={min: 3, mx: 4}", "train.workers.mx: no such key; did you mean max?"),
        ("cluster.env_vars={5: 6}", "env_vars.5: YAML reads this key as 5, and keys are words; put it in quotes"),
        ("cluster.env_vars={'5': 6}", "env_vars.'5': Input should be a valid string"),  # a key may be there
    ],
)
def test_a_mistake_is_told_once(tmp_path: Path, override: str, message: str) -> None:
    (line,) = lines(tmp_path, override)
    assert line.startswith(message)


def test_a_misspelt_key_is_not_missed_as_well(tmp_path: Path) -> None:
    assert lines(tmp_path, shard={"sorce": "s"}) == ["shard.sorce: no such key; did you mean source?"]
    assert lines(tmp_path, shard={"dataset_name": "s"}) == [
        "shard.dataset_name: no such key; it is shard.source, in the recipe"
    ]
    (tmp_path / "m.yaml").write_text("model_name_or_path: m\nshrad: {source: s}\n")
    with pytest.raises(RecipeError) as raised:
        load(tmp_path / "m.yaml", tmp_path / "c.yaml", [])
    assert str(raised.value).splitlines()[1:] == [
        "  model_name_or_path: no such key; it is model, in the recipe",
        "  shrad: no such key; did you mean shard?",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"r\.yaml is empty; see configs/"),
        ("# nothing\n", r"r\.yaml is empty"),
        ("- a\n", r"r\.yaml holds no sections"),
        ("train:\n\tlr: 5\n", r"line 2, column 1: .*Indent with spaces: YAML takes no tabs"),
        ("train: {lr: 1}\nshard: {}\ntrain: {lr: 2}\n", r"train is there twice, on line 1 and 3\. Keep one of them"),
        ("train:\n  lr: 1\n  seed: 1\n  'lr': 2\n", r"lr is there twice, on line 2 and 4"),
        ("shard: {source: 2024-13-45}\n", r"line 1, column 17: 2024-13-45 is no timestamp\. Put quotes around"),
        ("train: {lr: !!bool perhaps}", r"perhaps is no bool"),
        ("? [a]\n: 5\n", r"is not YAML: line 1, column 3: found unhashable key"),
        ("a: 1\n---\nb: 1\n", r"is not YAML: line 2, column 1: but found another document"),
        ("a: " + "[" * 5000, r"is nested too deeply"),
        (
            "model: m\nshard: {source: s}\non: 5\n",
            r"True: YAML reads this key as True, and keys are words; put it in qu",
        ),
        ("a: 1".encode("utf-16"), r"r\.yaml is not text in UTF-8: invalid start byte at byte 0\. Save it as UTF-8"),
        ("a: 1".encode("utf-16-le"), r"special characters are not allowed at character 1\. Save it as UTF-8"),
        ("a: é".encode("latin-1"), r"is not text in UTF-8: .* at byte 3\. Save it as UTF-8"),
    ],
    ids=range(15),
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "c.yaml").touch()
    with pytest.raises(RecipeError, match=message) as raised:
        load(tmp_path / "r.yaml", tmp_path / "r.yaml", [])
    assert len(str(raised.value).splitlines()) <= 2


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is a folder\. Name the YAML file in it"):
        load(tmp_path, tmp_path, [])
    with pytest.raises(RecipeError, match=r"/proc/self/mem cannot be read: Input/output error\. Make it readable"):
        load(Path("/proc/self/mem"), tmp_path, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").touch(mode=0)
    with pytest.raises(RecipeError, match=r"r\.yaml cannot be read: Permission denied\. Make it readable"):
        load(tmp_path / "r.yaml", tmp_path / "r.yaml", [])


def test_files_that_are_good_as_they_are(tmp_path: Path) -> None:
    """A byte order mark, a section without keys, and mappings that are merged into others that have a key of theirs."""
    text = (
        "\ufeffmodel: m\nscore:\nshard: &a {source: s, split: x}\ntrain: {lora: &b {<<: &c {rank: 4}, rank: 8}, lr: 1}"
    )
    (tmp_path / "r.yaml").write_text(text)
    (tmp_path / "c.yaml").write_text("root: here\n")
    recipe, _ = load(tmp_path / "r.yaml", tmp_path / "c.yaml", ["score.backend=torch"])
    assert (recipe.shard.split, recipe.score.backend, recipe.score.model) == ("x", "torch", "m")
    assert recipe.train.lora is not None
    assert recipe.train.lora.rank == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=[", r"--set train\.lr=\[: the value is not YAML: line 1, column 2: .*\. Put quotes around"),
        ("train.lora={rank: 1, rank: 2}", r"the value is not YAML: rank is there twice, on line 1\. Keep one of them"),
        ("train..lr=1", r"--set train\.\.lr=1 is not key=value"),
        ("=1", r"--set =1 is not key=value"),
        ("train.loss.1.beta=1", r"--set train\.loss\.1\.beta=1: loss is a list, which is set as a whole"),
        (
            "cluster=5",
            r"cluster: no such key; it is a file of its own: --cluster FILE, or --set cluster\.train\.workers",
        ),
    ],
)
def test_a_bad_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        read(tmp_path, override, train={"loss": ["dpo", "sft"]})
    assert len(str(raised.value).splitlines()) <= 2


FULL: dict[str, Any] = GOOD | {
    "rounds": 2,
    "wandb": {"project": "p"},
    "shard": {"source": ["s.jsonl", "t"], "columns": {"chosen": "better"}, "rows": "pairs", "max_length": 64},
    "score": {"dtype": "float32", "accept": {"calibration_pairs": 4}},
    "train": {
        "loss": [{"name": "dpo", "beta": 0.2}, {"name": "simpo", "weight": 0.5}, "sft"],
        "lora": {"rank": 4, "targets": ["q"], "merge": True},
        "adam_betas": [0.9, 0.99],
        "lr": "5e-7",
    },
}
WHERE: dict[str, Any] = {
    "root": "here",
    "env_vars": {"A": "1"},
    "train": {"workers": {"min": 1, "max": 2}},
    "score": {},
}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=4) | st.binary(max_size=2)
)
WORDS = st.sampled_from(["dpo", "sum", "ipo", "name", "terms", "model", "loss", "lr", "beta", "min", "train", "0"])
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(0, 2), inner, max_size=3),
    max_leaves=6,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of nested sections and lists."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    return [place for key, part in parts for place in [(content, key), *places(part)]]


@st.composite
def mistaken(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(places(content) or [({}, "x")]))
        change = draw(st.sampled_from(["delete", "replace", "misspell", "add"]))
        if change == "replace":
            container[key] = draw(VALUES)
        elif change == "add" and isinstance(container, dict):
            container[draw(WORDS | st.integers(0, 2))] = draw(VALUES)
        elif change == "misspell" and isinstance(container, dict) and isinstance(key, str):
            at = draw(st.integers(0, len(key)))
            container[key[:at] + draw(st.sampled_from("aeiou_")) + key[at + 1 :]] = container.pop(key)
        else:
            container.pop(key, None) if isinstance(container, dict) else container.pop(key)
    return content


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=mistaken(FULL), where=mistaken(WHERE))
def test_anything_else_is_a_recipe_error_that_names_each_key_once(tmp_path: Path, what: Any, where: Any) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(what))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(where))
    said = ""
    try:
        load(tmp_path / "r.yaml", tmp_path / "c.yaml", [])
    except RecipeError as error:
        said = str(error)
    told = [line.split(": ")[0] for line in said.splitlines()[1:]]
    assert len(told) == len(set(told)), said


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.lists(WORDS | st.text(max_size=3), max_size=4).map(".".join), value=st.text(max_size=12) | WORDS)
def test_any_override_is_taken_or_refused(tmp_path: Path, key: str, value: str) -> None:
    with suppress(RecipeError):
        read(tmp_path, f"{key}={value}")
