"""Wrong turns of new users: each is a row of pipeline/WRONG_TURNS.md, and gets the answer that stands there."""

import gzip
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, make_tokenizer
from typer.testing import CliRunner

from pipeline.cli import app

LAPTOP = str(ROOT / "configs" / "clusters" / "laptop.yaml")
PLAIN = {"prompt": "How was the sea?", "chosen": "good", "rejected": "bad"}
SAID = [{"role": "user", "content": "How was it?"}]
ANSWER = {"role": "assistant", "content": "good"}
SECONDS = 2  # of this process


@dataclass(frozen=True)
class Here:
    """A new user's folder: a model, a recipe, rows."""

    folder: Path
    model: Path

    def rows(self, *rows: Any, name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))
        return str(self.folder / name)

    def recipe(self, **sections: Any) -> str:
        content = {
            "model": str(self.model),
            "shard": {"source": str(self.folder / "rows.jsonl"), "max_length": 128},
            "score": {"backend": "torch", "dtype": "float32"},
            "train": {"lr": 1e-6},
        }
        for name, section in sections.items():
            content[name] = content.get(name, {}) | section if isinstance(section, dict) else section
        (self.folder / "my.yaml").write_text(yaml.safe_dump(content))
        if not (self.folder / "rows.jsonl").exists():
            self.rows(PLAIN)
        return str(self.folder / "my.yaml")

    def written(self, text: str) -> str:
        (self.folder / "my.yaml").write_text(text)
        return str(self.folder / "my.yaml")

    def plan(self, *overrides: str, **sections: Any) -> list[str]:
        return ["plan", self.recipe(**sections), *(word for each in overrides for word in ("--set", each))]

    def partial_model(self, *files: str) -> str:
        """A folder that has some files of the model."""
        folder = self.folder / "partial"
        folder.mkdir()
        for file in files:
            (folder / file).symlink_to(self.model / file)
        return str(folder)

    def pointed_model(self) -> str:
        folder = Path(self.partial_model("config.json", *TOKENIZER))
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        return str(folder)

    def compressed(self, content: bytes) -> dict[str, str]:
        (self.folder / "rows.jsonl.gz").write_bytes(content)
        return {"source": str(self.folder / "rows.jsonl.gz")}

    def without_template(self) -> str:
        folder = self.folder / "plain"
        make_tokenizer(folder, chat_template=None)
        return str(folder)

    def several_splits(self) -> dict[str, str]:
        (self.folder / "set").mkdir()
        for name in ("validation", "test"):
            self.rows(PLAIN, name=f"set/{name}.jsonl")
        return {"source": str(self.folder / "set")}


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WRITTEN = "model: m\nshard:\n\tsource: rows.jsonl\n"
TURNS: dict[str, Callable[[Here], list[str]]] = {
    "a command misspelt": lambda here: ["pln", here.recipe()],
    "an option misspelt": lambda here: ["plan", here.recipe(), "--sett", "train.lr=1"],
    "no recipe named": lambda _: ["plan"],
    "a recipe that is not there": lambda here: ["plan", str(here.folder / "nothing.yaml")],
    "a folder for the recipe": lambda here: ["plan", str(here.folder)],
    "an empty file for the recipe": lambda here: ["plan", here.written("")],
    "a tab in the YAML": lambda here: ["plan", here.written(WRITTEN)],
    "a key twice": lambda here: ["plan", here.written("model: m\nmodel: n\n")],
    "a key of another tool": lambda here: here.plan(train={"learning_rate": 1e-6}),
    "a key misspelt": lambda here: here.plan(train={"lrr": 1e-6}),
    "a word for a number": lambda here: here.plan("train.lr=fast"),
    "a loss that there is not": lambda here: here.plan("train.loss=dop"),
    "a negative beta": lambda here: here.plan("train.loss.beta=-0.1"),
    "--set without a value": lambda here: here.plan("train.lr"),
    "the cluster file for the recipe": lambda _: ["plan", LAPTOP],
    "the recipe for the cluster file": lambda here: ["plan", here.recipe(), "--cluster", here.recipe()],
    "a cluster file that is not there": lambda here: ["plan", here.recipe(), "--cluster", "nothing.yaml"],
    "rows that are not there": lambda here: here.plan(shard={"source": "nothing.jsonl"}),
    "a hub name without network": lambda here: here.plan(model="org/model"),
    "a pointer of git-lfs in place of weights": lambda here: here.plan(model=here.pointed_model()),
    "a model's folder without weights": lambda here: here.plan(model=here.partial_model("config.json", *TOKENIZER)),
    "a model's folder without tokenizer": lambda here: here.plan(
        model=here.partial_model("config.json", "model.safetensors")
    ),
    "a folder that is no model": lambda here: here.plan(model=here.partial_model(*TOKENIZER)),
    "messages, and a tokenizer without a chat template": lambda here: (
        here.rows({"prompt": SAID, "chosen": [ANSWER], "rejected": [ANSWER | {"content": "bad"}]})
        and here.plan(shard={"tokenizer": here.without_template()})
    ),
    "an empty file of rows": lambda here: here.rows() and here.plan(),
    "rows that are not JSON": lambda here: here.rows("How was the sea?") and here.plan(),
    "a document for rows": lambda here: here.plan(shard={"source": here.rows("text", name="rows.txt")}),
    "cells with other columns": lambda here: here.plan(
        shard={"source": here.rows("question,good,bad", "How?,well,no", name="rows.csv")}
    ),
    "one answer a prompt": lambda here: here.rows({"prompt": "How?", "response": "well"}) and here.plan(),
    "labelled answers, and a loss of pairs": lambda here: (
        here.rows({"prompt": "How?", "completion": "well", "label": True}) and here.plan()
    ),
    "a loss of labelled answers, and pairs": lambda here: here.plan("train.loss=kto"),
    "chosen and rejected alike in all rows": lambda here: here.rows(PLAIN | {"rejected": "good"}) and here.plan(),
    "gzip that is cut off": lambda here: here.plan(shard=here.compressed(gzip.compress(b"{}\n" * 50)[:-12])),
    "a name of gzip, and other bytes": lambda here: here.plan(shard=here.compressed(bytes(range(128, 256)))),
    "a folder of several splits": lambda here: here.plan(shard=here.several_splits()),
    "rows longer than max_length": lambda here: (
        here.rows(PLAIN | {"prompt": "weather " * 60}) and here.plan("shard.max_length=32", "shard.truncation=drop")
    ),
    "max_length beyond the model's context": lambda here: here.plan("shard.max_length=100000"),
    "more workers than cores": lambda here: here.plan("cluster.train.workers=4096"),
    "GPUs where there are none": lambda here: here.plan("cluster.train.gpus_per_worker=1"),
    "a root that cannot be written": lambda here: here.plan("cluster.root=/proc/runs"),
    "a stage that there is not": lambda here: ["run", here.recipe(), "--only", "trian"],
    "training before scoring": lambda here: ["run", here.recipe(), "--only", "train"],
    "--from behind --until": lambda here: ["run", here.recipe(), "--from", "train", "--until", "shard"],
    "show before the run": lambda here: ["show", here.recipe()],
    "pairs before the run": lambda here: ["show", here.recipe(), "--pairs", "3"],
    "verify before the run": lambda here: ["verify", here.recipe()],
    "a sweep without values": lambda here: ["sweep", here.recipe()],
    "submit without a dashboard": lambda here: [
        "submit", here.recipe(), "--cluster", LAPTOP, "--set", "cluster.root=/tmp/runs",
    ],
    "init where a recipe is": lambda here: [
        "init", here.rows(PLAIN), str(here.model), "--out", here.recipe(),
    ],
    "init with model and data exchanged": lambda here: [
        "init", str(here.model), here.rows(PLAIN), "--out", str(here.folder / "new.yaml"),
    ],
}  # fmt: skip
NO_FAULT = {"show before the run": 0, "verify before the run": 1}


def answers() -> dict[str, str]:
    """By wrong turn, as the document has them."""
    lines = (ROOT / "pipeline" / "WRONG_TURNS.md").read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")][1:]
    return {turn.strip(): answer.strip() for turn, answer in rows}


def test_all_are_written_down() -> None:
    assert list(answers()) == list(TURNS)


@pytest.mark.parametrize("turn", TURNS)
def test_a_wrong_turn_is_answered(turn: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = TURNS[turn](Here(tmp_path, tiny_model))
    began = time.process_time()
    done = CliRunner().invoke(app, words)
    spent = time.process_time() - began
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", done.output).split())
    pieces = [re.escape(piece.strip()) for piece in answers()[turn].split("..")]
    assert re.search(".*".join(pieces), said), said
    assert done.exit_code == NO_FAULT.get(turn, 2)
    assert "Traceback" not in said
    assert spent < SECONDS
    assert not (tmp_path / "runs" / "logs").exists()  # nothing was started
