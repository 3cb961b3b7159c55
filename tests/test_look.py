"""What `plan` says of the first rows and of this machine, in a process of its own, as people start it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from conftest import ROOT, Project, make_project, make_tokenizer

from pipeline.cluster.room import Node
from pipeline.look import look, machine
from pipeline.recipe.sections import Cluster, Nodes
from stages.config import Elastic
from stages.errors import RecipeError
from stages.sample.config import SampleConfig
from stages.sample.look import look as look_at_prompts
from stages.score.config import ScoreResources
from stages.shard.config import Chat, ShardConfig
from stages.shard.look import look as look_at_rows
from stages.shard.tokenization import load_tokenizer
from stages.train.config import TrainResources

MESSAGES = {side: [{"role": role, "content": side}] for side, role in (("prompt", "user"), ("chosen", "assistant"))}
MESSAGES["rejected"] = [{"role": "assistant", "content": "no"}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return str(folder)


def raydpo(project: Project, command: str, *arguments: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "pipeline", command, project.recipe, "--cluster", project.cluster, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT)


def test_plan_tells_of_the_first_rows_and_run_stops_before_ray(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path, tiny_model)
    done = raydpo(project, "plan")
    assert done.returncode == 0, done.stderr
    assert "the first 20 rows of triples.jsonl have the shape conversational; the longest has about" in done.stdout
    (shard, *_) = json.loads(raydpo(project, "plan", "--json").stdout)
    assert shard["looked"][0] in done.stdout.replace("\n", " ")

    write(tmp_path / "triples.jsonl", {"prompt": "p", "better": "a", "rejected": "b"})
    for command in ("plan", "run"):
        done = raydpo(project, command)
        assert done.returncode == 2
        assert "has no column 'chosen'; it has 'prompt', 'better', 'rejected'" in done.stderr
    assert not (tmp_path / "runs" / "logs").exists()  # nothing was started
    assert raydpo(project, "show").returncode == 0  # which looks at nothing


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (["{"], {}, "the first row of .* is not JSON"),
        ([""], {}, "has no rows"),
        (["[1]"], {}, "is a int, not a JSON"),
        (["(3 cells, and 1 columns) a | b | c"], {}, r"the first row of .* cannot be read: 3 cells, and 1 columns"),
        (["{}"], {}, r"has no column 'chosen'; it has none, by its row 0"),
        ([{"prompt": "a", "chosen": "b"}], {}, r"has no column 'rejected'; it has 'prompt', 'chosen'"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": ""}] * 3,
            {},
            "none of the first 3 rows .* row 0: a completion is",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], {}, "none of the first 1 rows .* the same text"),
        (
            [{"prompt": "a", "chosen": 1, "rejected": "b"}],
            {},
            r"has rows of no known shape; its row 0 has 'prompt' \(str\), 'chosen' \(int\)",
        ),
        (
            [{"prompt": "weather " * 30, "chosen": "b", "rejected": "c"}],
            {"max_length": 16, "truncation": "drop"},
            r"none of the first 1 rows .* it has \d+ tokens or more, and shard\.max_length is 16",
        ),
        (
            [{side: [{"role": "user", "content": each} for each in ("a", side)] for side in ("chosen", "rejected")}],
            {},
            "none of the first 1 rows .* a completion has no turn of the assistant",
        ),
        ([{"prompt": "a"}], {"where": "gap > 3"}, r"names the column 'gap', which .* does not have; it has 'prompt'"),
        ([{"prompt": "a"}], {"where": "prompt == 'b'"}, r"of the rows of .* none is taken \(where: prompt == 'b'\)"),
        ([{"prompt": "a", "completion": "b", "label": True}], {}, r"Set shard\.rows: labelled"),
    ],
)
def test_what_would_stop_the_run(
    rows: list[Any], fields: dict[str, Any], message: str, tmp_path: Path, tokenizer: str
) -> None:
    config = ShardConfig(source=write(tmp_path / "t.jsonl", *rows), tokenizer=tokenizer, **fields)
    with pytest.raises(RecipeError, match=message):
        look_at_rows(config)


def test_messages_need_a_template(tmp_path: Path, tokenizer: str) -> None:
    source = write(tmp_path / "t.jsonl", MESSAGES)
    assert "have the shape conversational" in look_at_rows(ShardConfig(source=source, tokenizer=tokenizer)).told
    make_tokenizer(tmp_path / "plain", chat_template=None)
    with pytest.raises(RecipeError, match=r"holds lists of messages, and the tokenizer of .* has no chat template"):
        look_at_rows(ShardConfig(source=source, tokenizer=str(tmp_path / "plain")))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}\n{{ m.content }", r"line 2 of .*mine\.jinja is not Jinja: .*Mend the template"),
        ("{% for m in messages %}{{ m.content }}", r"is not Jinja: Unexpected end of template.*'endfor'"),
        ("{{ messages | last_turn }}", "is not Jinja: No filter named 'last_turn'"),
        ("{% generation %}{{ messages }}{% if %}{% endgeneration %}", "is not Jinja: Expected an expression"),
        (
            "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}",
            "",
        ),  # what transformers knows too
    ],
)
def test_a_template_that_is_not_jinja_is_told(template: str, message: str, tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "mine.jinja").write_text(template)
    config = ShardConfig(
        source=write(tmp_path / "t.jsonl", MESSAGES),
        tokenizer=tokenizer,
        chat=Chat(template=str(tmp_path / "mine.jinja")),
    )
    if not message:
        look_at_rows(config)
        return
    with pytest.raises(RecipeError, match=message):
        look_at_rows(config)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json cannot be read: Exception: EOF while parsing"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is not JSON: .*\. Fetch the model again"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json is not a JSON object but a list"),
        ("tokenizer_config.json", b"\xff", r"tokenizer_config\.json is not text in UTF-8"),
    ],
)
def test_a_damaged_tokenizer_is_told(file: str, content: bytes, message: str, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / file).write_bytes(content)
    source = write(tmp_path / "t.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(RecipeError, match=message):
        look_at_rows(ShardConfig(source=source, tokenizer=str(tmp_path)))
    with pytest.raises(
        RecipeError, match=r"the tokenizer of .* cannot be loaded: .*name another one: shard\.tokenizer"
    ):
        load_tokenizer(str(tmp_path))


def test_some_bad_rows_are_a_warning(tmp_path: Path, tokenizer: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    source = write(tmp_path / "t.jsonl", good, "{", good, good | {"chosen": ""})
    seen = look_at_rows(ShardConfig(source=source, tokenizer=tokenizer))
    assert seen.told.startswith("the first 4 rows of t.jsonl have the shape explicit; the longest has about ")
    notice = seen.notices[-1]
    assert notice.startswith("2 of the first 4 rows of t.jsonl make no pair: row 1: not JSON")
    lone = look_at_rows(
        ShardConfig(source=write(tmp_path / "u.jsonl", good, good | {"prompt": "\ud800"}), tokenizer=tokenizer)
    )
    assert "1 of the first 2 rows of u.jsonl make no pair: row 1: the tokenizer cannot read a text" in lone.notices[-1]


def test_a_set_that_datasets_saved_is_read_without_it(tmp_path: Path, tokenizer: str) -> None:
    rows = datasets.Dataset.from_list([MESSAGES] * 30)
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    seen = look_at_rows(ShardConfig(source=str(tmp_path / "saved"), tokenizer=tokenizer))
    assert "the first 20 rows of saved have the shape conversational" in seen.told


def test_what_is_not_here_is_not_looked_at(tmp_path: Path) -> None:
    assert "no row was looked at" in look_at_rows(ShardConfig(source="org/set@main", tokenizer="org/model")).told
    source = write(tmp_path / "t.jsonl", MESSAGES)
    seen = look_at_rows(ShardConfig(source=source, tokenizer="org/model"))
    assert seen.notices == ("the tokenizer of org/model is not on this machine yet: it was not looked at",)


def test_prompts_are_looked_at_as_triples_are(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path, tiny_model)
    (tmp_path / "good.py").write_text("def score(prompt, completion): return 0\n")
    recipe = yaml.safe_load(project.recipe.read_text())
    del recipe["shard"]["source"]
    recipe |= {
        "sample": {"source": str(tmp_path / "asked.jsonl")},
        "judge": {"name": "function", "function": "good:score"},
    }
    project.recipe.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"sample\.source: there is no file or folder .*asked\.jsonl"):
        project.plan()

    def seen(*rows: Any, **fields: Any) -> list[str]:
        recipe["sample"] = {"source": write(tmp_path / "asked.jsonl", *rows)} | fields
        project.recipe.write_text(yaml.safe_dump(recipe))
        return look(list(project.plan().values()), Cluster())

    good = {"prompt": "Why is the weather good?"}
    told, *notices = seen(good, {"question": "Why?"}, {"prompt": ""}, {"conversations": MESSAGES["prompt"]})
    assert told.startswith("the first 4 rows of asked.jsonl have prompts; the longest has about ")
    assert told.endswith(" tokens, and sample.max_prompt_length is 512")
    assert "Warning: 1 of the first 4 rows of asked.jsonl make no prompt: row 2: the prompt is empty" in notices
    with pytest.raises(
        RecipeError, match=r"none of the first 1 rows .*: row 0: it has no column 'prompt'; it has 'ask'"
    ):
        seen({"ask": "Why?"})
    with pytest.raises(RecipeError, match=r"row 0: it has \d+ tokens or more, and sample\.max_prompt_length is 3"):
        seen(good, max_prompt_length=3)
    with pytest.raises(RecipeError, match=r"sample\.source .*asked\.jsonl has no rows"):
        seen()
    there = SampleConfig(source="org/set@main", tokenizer="org/model", models=("org/model",))
    assert look_at_prompts(there).told == "org/set@main is not on this machine: no row was looked at"


def test_more_workers_than_this_machine_has(tmp_path: Path, tiny_model: Path) -> None:
    steps = list(make_project(tmp_path, tiny_model).plan().values())
    with pytest.raises(RecipeError, match=r"cluster\.train\.workers is 1000, each with 1 CPUs, and this machine has"):
        look(steps, Cluster(train=TrainResources(workers=1000)))
    if machine().get("GPU") == 0:
        with pytest.raises(RecipeError, match=r"each with 1 GPUs, and this machine has 0"):
            look(steps, Cluster(train=TrainResources(gpus_per_worker=1)))
    assert look(steps, Cluster(train=TrainResources(workers=1000), address="auto"))  # it may well have them


def test_each_stage_is_told_of_the_nodes_that_it_may_have(tmp_path: Path, tiny_model: Path) -> None:
    """Room is on nodes with the labels, and a worker is on one node."""
    steps = list(make_project(tmp_path, tiny_model).plan().values())
    large, small = {"kind": "large"}, {"kind": "small"}
    cluster = Cluster(
        nodes=(Nodes(count=3, cpus=4, gpus=4, labels=small), Nodes(count=2, cpus=90, gpus=8, labels=large)),
        score=ScoreResources(actors=Elastic(min=2, max=99), gpus_per_actor=3, labels=small),
        train=TrainResources(workers=17, cpus_per_worker=8, gpus_per_worker=1, labels=large),
    )
    score, train = [line for line in look(steps, cluster) if "there is room for" in line]
    assert (
        score == "cluster.score.actors is 2, each with 1 CPUs and 3 GPUs on nodes with kind=small: there is room for 3"
    )
    assert train == (
        "Warning: cluster.train.workers is 17, each with 8 CPUs and 1 GPUs on nodes with kind=large: there is room for "
        "16, and the stage waits until there is more"
    )
    more = [Node({"CPU": 90, "GPU": 8}, large)] * 3
    assert any(line.endswith("kind=large: there is room for 24") for line in look(steps, cluster, more))
    with pytest.raises(RecipeError, match=r"this machine has no labels\. Leave out cluster\.score\.labels"):
        look(steps, Cluster(score=ScoreResources(labels=small)))


def test_looking_is_light(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path, tiny_model)
    code = (
        "import sys; from pipeline.cli import app; from stages.sample.look import look, SampleConfig\n"
        "named = {'tokenizer': sys.argv.pop(), 'source': sys.argv.pop()}; look(SampleConfig(models=('m',), **named))\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: print(*{'torch', 'ray', 'vllm', 'transformers', 'datasets'} & set(sys.modules), sep=',')"
    )
    words = [sys.executable, "-c", code, "plan", str(project.recipe), "--cluster", str(project.cluster)]
    words += [str(tmp_path / "triples.jsonl"), str(tiny_model)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "the first 20 rows" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == ""
