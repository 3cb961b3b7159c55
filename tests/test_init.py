"""`raydpo init`: what it writes is taken by `plan`, and fits what it saw."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, make_tokenizer
from test_plan_memory import SHAPES
from test_schemas import complaints
from typer.testing import CliRunner, Result

from pipeline.begin.choices import eval_fraction, global_batch, training
from pipeline.begin.cluster_file import cluster_text
from pipeline.begin.data import Data
from pipeline.begin.machine import Machine
from pipeline.begin.model import Model
from pipeline.begin.recipe_file import recipe_text
from pipeline.bill.rows import Rows
from pipeline.cli import app
from pipeline.recipe.load import load
from stages.train.memory.sizes import from_config

PLAIN = {"prompt": "How was the sea?", "chosen": "good", "rejected": "bad"}
SAID = [{"role": "user", "content": "How was it?"}]
GIVEN: dict[str, Any] = {  # rows -> fields of the recipe that follow
    "plain": (PLAIN, {"shard.text": "chat"}),
    "messages": (
        {"prompt": SAID} | {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")},
        {"shard.text": None, "train.loss.name": "dpo"},
    ),
    "transcripts": (
        {side: f"\n\nHuman: How was it?\n\nAssistant: {side}" for side in ("chosen", "rejected")},
        {"shard.text": "chat", "shard.columns": None},
    ),
    "other names": (
        {"Question": "How was it?", "Good": "good", "Bad": "bad"},
        {"shard.columns": {"prompt": "Question", "chosen": "Good", "rejected": "Bad"}},
    ),
    "one other name": (PLAIN | {"prompt": None, "question": "How was it?"}, {"shard.columns": {"prompt": "question"}}),
    "ranked": ({"prompt": "How was it?", "completions": ["good", "bad"], "scores": [2, 1]}, {"shard.text": None}),
    "labelled": (
        {"prompt": "How was it?", "completion": "good", "label": True},
        {"shard.rows": "labelled", "train.loss.name": "kto"},
    ),
    "prompts": ({"prompt": "How was it?"}, {"judge.function": "my_judge:score", "shard.source": None}),
    "OpenAI's": (
        {"input": {"messages": SAID}}
        | {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("preferred_output", "good"), ("non_preferred_output", "bad"))
        },
        {"sample": None, "shard.columns": None},
    ),
    "compared": (
        {"prompt": "How was it?", "response_a": "bad", "response_b": "good", "preference": "B"},
        {"sample": None, "shard.columns": None},
    ),
    "compared with numbers": (
        {"context": SAID, "response1": "bad", "response2": "good", "overall_preference": 2},
        {"sample": None, "shard.columns": None},
    ),
    "questions": ({"question": "How was it?", "id": 5}, {"sample.num_samples": 4}),
}


def init(source: object, model: object, out: Path) -> Result:
    return CliRunner().invoke(app, ["init", str(source), str(model), "--out", str(out)])


def write(path: Path, *rows: Any) -> Path:
    given = [{key: value for key, value in row.items() if value is not None} for row in rows]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in given))
    return path


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_written_is_taken_by_plan(name: str, tmp_path: Path, tiny_model: Path) -> None:
    row, fields = GIVEN[name]
    out, cluster = tmp_path / "my.yaml", tmp_path / "my.cluster.yaml"
    done = init(write(tmp_path / "rows.jsonl", *[row] * 3), tiny_model, out)
    assert done.exit_code == 0, done.output
    assert "3 rows" in done.output
    content = yaml.safe_load(out.read_text())
    for key, value in fields.items():
        found: Any = content
        for word in key.split("."):
            found = found.get(word) if found else None
        assert found == value, key
    for kind, path in (("recipe", out), ("cluster", cluster)):
        assert complaints(kind, yaml.safe_load(path.read_text())) == []
        schema = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / schema).resolve() == ROOT / "configs" / f"{kind}.schema.json"
    planned = CliRunner().invoke(
        app, ["plan", str(out), "--cluster", str(cluster), "--set", f"cluster.root={tmp_path / 'runs'}"]
    )
    assert planned.exit_code == 0, planned.output
    assert planned.output.count("never made") == len([key for key in ("sample", "judge") if key in content]) + 3


def test_columns_that_may_be_answers_are_told(tmp_path: Path, tiny_model: Path) -> None:
    row = {"prompt": "How was it?", "one": "good", "other": "bad"}
    done = init(write(tmp_path / "rows.jsonl", row), tiny_model, tmp_path / "my.yaml")
    assert "prompts alone" in done.output
    assert "of columns 'one', 'other' none is taken for an answer" in done.output.replace("\n", " ")


def test_nothing_is_overwritten(tmp_path: Path, tiny_model: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", PLAIN)
    for file in ("my.yaml", "my.cluster.yaml"):
        (tmp_path / file).write_text("mine")
        done = init(rows, tiny_model, tmp_path / "my.yaml")
        assert done.exit_code == 2
        assert f"{file} is there already, and init overwrites nothing" in done.output.replace("\n", "")
        assert (tmp_path / file).read_text() == "mine"
        (tmp_path / file).unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        (["{"], "is not JSON"),
        (
            [{"prompt": "a", "response": "b"}],
            "has one answer a prompt, 'response' (of 'prompt', 'response'), and a pair takes two",
        ),
        ([{"data": [{"prompt": "a"}]}], "its 'data' is a list of objects: are these the rows?"),
        ([{"prompt": "a", "better": "b"}], "has no column 'chosen'; it has 'prompt', 'better'"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "chosen and rejected are the same text"),
        (None, "DATA: there is no file or folder"),
    ],
)
def test_bad_data_are_told_as_shard_tells_them(
    rows: list[Any] | None, message: str, tmp_path: Path, tiny_model: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    if rows is not None:
        source.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    done = init(source, tiny_model, tmp_path / "my.yaml")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "my.yaml").exists()


def test_bad_models_are_told(tmp_path: Path, tiny_model: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", PLAIN)
    make_tokenizer(tmp_path / "words")
    (tmp_path / "weights").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "weights" / file).symlink_to(tiny_model / file)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("words", "holds no config.json: it is no model as transformers saves one"),
        ("weights", "holds no tokenizer (tokenizer.json"),
        ("empty", "holds no config.json"),
        ("nowhere", "MODEL: there is no file or folder"),
    ):
        done = init(rows, tmp_path / name, tmp_path / "my.yaml")
        assert done.exit_code == 2
        assert message in done.output.replace("\n", " "), name
    (tmp_path / "words" / "config.json").symlink_to(tiny_model / "config.json")
    assert "holds no weights" in init(rows, tmp_path / "words", tmp_path / "my.yaml").output


def data(rows: int, tokens: int) -> Data:
    return Data("rows.jsonl", "pairs", "explicit", {}, True, Rows(rows, True), 200, [tokens] * 200, ())


@pytest.mark.parametrize(
    ("shape", "machine", "recipe", "cluster"),
    [
        ("8B", Machine(64, 10**12, 8, 80 * 2**30, "H100"), {}, {"activation_checkpointing": "layer"}),
        ("8B", Machine(16, 10**11, 1, 80 * 2**30, "H100"), {"lora"}, {"activation_checkpointing": "layer"}),
        ("8B", Machine(16, 10**11, 1, 16 * 2**30, "T4"), {"lora", "quantize"}, {}),
        ("8B", Machine(16, 10**11, 2, None), {}, {"workers": 2}),  # the driver does not tell
        ("70B", Machine(16, 10**11, 1, 16 * 2**30), {"lora", "quantize"}, {}),  # which says that it is not enough
    ],
)
def test_training_is_made_to_fit(
    shape: str, machine: Machine, recipe: set[str], cluster: dict[str, Any], tmp_path: Path
) -> None:
    model = Model("org/model", from_config(SHAPES[shape]), 8192, chat=True)
    found = training(model, machine, 2048)
    assert found.recipe.keys() == set(recipe)
    assert cluster.items() <= {key: each.value for key, each in found.cluster.items()}.items()
    assert ("not enough" in found.fits) == (shape == "70B")
    out = tmp_path / "my.yaml"
    out.write_text(recipe_text(data(10_000, 700), model, machine, found, out, "schema"))
    out.with_name("c.yaml").write_text(cluster_text(model, machine, found, False, "schema"))
    what, where = load(out, out.with_name("c.yaml"), [])
    assert where.train.gpus_per_worker == 1
    assert what.score.backend == ("torch" if "quantize" in recipe else "vllm")
    assert what.train.dtype == what.score.dtype == "bfloat16"
    assert where.score.actors * where.score.gpus_per_actor <= machine.gpus


@pytest.mark.parametrize(("rows", "share", "batch"), [(2, 0.3, 4), (100, 0.2, 4), (1000, 0.1, 32), (10**6, 0.002, 64)])
def test_batches_and_held_out_pairs_follow_from_the_number_of_rows(rows: int, share: float, batch: int) -> None:
    found = eval_fraction(data(rows, 10))
    assert (found.value, global_batch(data(rows, 10), found.value).value) == (share, batch)


def test_recipes_are_listed() -> None:
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    shipped = sorted((ROOT / "configs" / "recipes").rglob("*.yaml"))
    assert [Path(row["recipe"]).name for row in listed] == [path.name for path in shipped]
    assert all(all(row.values()) for row in listed)
    assert all("yaml-language-server" not in row["what"] for row in listed)
    shown = CliRunner().invoke(app, ["recipes"]).stdout
    assert shown.count("\n") == 2 * len(listed)
