"""What the READMEs say: commands that run; options, fields, losses, files and links that are there.

A command that belongs to no kind below fails: say here how that kind is tried.
"""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import typer
import yaml
from conftest import ROOT
from pydantic import BaseModel
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.recipe.load import load
from pipeline.recipe.sections import Cluster, Recipe
from stages.engine.config import EngineResources
from stages.evaluate.config import EvaluateConfig
from stages.judge.config import Asking
from stages.sample.config import SampleConfig
from stages.score.config import Acceptance, ScoreConfig
from stages.shard.config import Columns, ShardConfig, Source
from stages.train.config import Lora, TrainConfig
from stages.train.objective.named.loss import BY_NAME

IGNORED = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".*"]
ROOMS = [each for each in sorted(ROOT.iterdir()) if each.is_dir() and not any(fnmatch(each.name, p) for p in IGNORED)]
READMES = [ROOT / "README.md", *(path for room in ROOMS for path in sorted(room.rglob("README.md")))]
DOCUMENTS = [*READMES, ROOT / "CONTRIBUTING.md"]
LANGUAGES = {"sh", "yaml", "json", "jsonl", "python", "text"}
READERS_FILES = {"my.yaml", "cluster.yaml"}
OF_ARTIFACTS = {"policy/", "adapter/", "checkpoints/step-NNNNNNNN/"}
NOBODY = "http://127.0.0.1:1"  # where no dashboard answers
OF_ENGINES = ("cluster.sample", "cluster.score", "cluster.evaluate")
COMMANDS = typer.main.get_command(app).commands


class Block(NamedTuple):
    heading: str  # the nearest one above
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    found, heading, language, lines = [], "", None, []
    for line in path.read_text().splitlines():
        fence = line.strip().startswith("```")
        if language is None and fence:
            language, lines = line.strip().removeprefix("```"), []
        elif fence:
            found.append(Block(heading, str(language), "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert language is None, f"{path}: a fence is not closed"
    return found


def prose(path: Path) -> str:
    """All but the fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(path))


def tables(path: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(header, rows) of each table."""
    for table in re.findall(r"(?:^\|.*\|\n)+", prose(path), flags=re.MULTILINE):
        header, _, *rows = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()
        )
        yield header, rows


def commands(path: Path) -> Iterator[str]:
    """Lines of shell blocks, without comments, and what stands in the text as a whole command."""
    for block in blocks(path):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield shlex.join(words)
    yield from (span for span in spans(path) if re.match(r"(make|raydpo|python -m) [\w.-]+$", span))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FOUND = {command: path for path in reversed(DOCUMENTS) for command in commands(path)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """What a reader has: `my.yaml`, recipes and cluster files; here on a tiny model, with a root of their own."""
    folder = tmp_path_factory.mktemp("reader")
    for path in (ROOT / "configs").rglob("*.yaml"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(path.read_text())
        if "clusters" in path.parts:
            content |= {"root": str(folder / "runs")} | (
                {"dashboard": NOBODY, "dashboard_seconds": 0} if "dashboard" in content else {}
            )
        else:
            content["model"] = str(tiny_model)
            content["shard"] |= {"source": str(ROOT / "configs/data/demo_triples.jsonl"), "max_length": 128}
        copy.write_text(yaml.safe_dump(content))
    (folder / "my.yaml").write_text((folder / "configs/recipes/demo.yaml").read_text())
    for place in (folder, folder / "configs/recipes"):  # the demo's judge lies beside its recipe
        shutil.copy(ROOT / "configs/recipes/sentiment.py", place)
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def check_raydpo(words: list[str], checkout: Path) -> None:
    """`run` and `sweep` to their plans, `submit` to the dashboard, `watch` to its options, the others wholly, on a root
    that is empty."""
    _, command, *arguments = words
    if not arguments:  # named in the text
        assert command in COMMANDS, f"there is no raydpo {command}"
        return
    status, message = {
        "init": (2, "my.yaml is there already, and init overwrites nothing"),
        "plan": (0, "train"),
        "run": (0, "train"),
        "show": (0, "{}" if "--json" in arguments else "train: miss: never made"),
        "verify": (1, "train: miss: never made"),
        "show pairs": (2, "there are no pairs yet: shard is a miss"),
        "show samples": (2, "there are no samples yet: evaluate is a miss"),
        "sweep": (0, "not begun"),
        "rm": (2, "there is no artifact train/0123456789ab among the 0"),
        "gc": (0, "0 artifacts stay, and none goes"),
        "diff": (0, "the same in both: shard, score, train, evaluate"),
        "export": (2, "shard is a miss: there is nothing to export yet"),
        "merge": (2, "there is no"),
        "push": (2, "there is no policy yet: train is a miss"),
        "report": (0, "The report: "),
        "watch": (0, "Serve the report"),
        "submit": (2, f"no Ray dashboard answers at {NOBODY}"),
        "cancel": (2, f"no Ray dashboard answers at {NOBODY}"),
        "status": (0, f"no Ray dashboard answers at {NOBODY}"),
    }[next((f"show {rows}" for rows in ("pairs", "samples") if f"--{rows}" in arguments), command)]
    dry = {"run": ["--dry-run"], "sweep": ["--dry-run"], "watch": ["--help"]}.get(command, [])
    with contextlib.chdir(checkout):  # in this process: tests/e2e runs whole command lines
        done = CliRunner().invoke(app, [command, *arguments, *dry])
    assert done.exit_code == status, done.output
    assert message in done.output


def check_make(words: list[str], _: Path) -> None:
    for target in words[1:]:  # make itself is content with a folder of that name
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"there is no make {target}"
    done = run(["make", "--dry-run", *words[1:]], ROOT)
    assert done.returncode == 0, done.stderr


def check_python(words: list[str], _: Path) -> None:
    """Modules as far as their options; scripts must be there."""
    if words[1] != "-m":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
        return
    done = run([sys.executable, *words[1:], "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"^  {option}(?![\w-])", done.stdout, re.MULTILINE), f"{words[2]} has no option {option}"


def check_files(words: list[str], _: Path) -> None:
    """What we do not run: it must be shell, and the files that it names must be there."""
    done = subprocess.run(["bash", "-n", "-c", shlex.join(words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in words[1:]:
        if "/" in word and "://" not in word:
            assert (ROOT / word).exists(), f"there is no {word}"


KINDS = {
    "raydpo": check_raydpo,
    "make": check_make,
    "python": check_python,
    **dict.fromkeys(("docker", "kubectl", "ray", "sbatch"), check_files),
}


@pytest.mark.parametrize("command", FOUND)
def test_a_command_works(command: str, checkout: Path) -> None:
    words = shlex.split(command)
    if words[0] not in KINDS:
        pytest.fail(f"{name_of(FOUND[command])}: no way is known to try `{command}`: give KINDS one for {words[0]}")
    KINDS[words[0]](words, checkout)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_blocks_are_fenced_and_say_their_language(path: Path) -> None:
    assert {block.language for block in blocks(path)} <= LANGUAGES
    indented = [line for line in prose(path).splitlines() if line.startswith(("    ", "\t"))]
    assert not indented, "indented text is a block too: fence it, so that its commands are found"


def test_the_front_page_is_short_and_counts_the_losses() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(page.splitlines()) <= 150
    assert f"and {len(BY_NAME) - 2} other losses" in page  # but for DPO's and the sum


def test_the_picture_is_what_its_script_draws() -> None:
    folder = ROOT / "infra" / "readme"
    assert (folder / "pipeline.svg").read_text() == runpy.run_path(str(folder / "draw_pipeline.py"))["picture"]()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"there is no {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), flags=re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in known, f"{link}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_paths_are_there(path: Path) -> None:
    """From the root, or from the document's folder; a bare name may be that of a file in several rooms."""
    rooms = tuple(f"{room.name}/" for room in ROOMS)
    bare = {file.name for room in ROOMS for file in room.rglob("*.*")}
    for span in set(spans(path)) - READERS_FILES - OF_ARTIFACTS:
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span) and (
            span.startswith(rooms)
            or span.endswith(("/", ".py", ".md", ".yaml", ".toml", ".txt", ".svg", ".Dockerfile"))
        )
        if is_path:
            assert span in bare or (ROOT / span).exists() or (path.parent / span).exists(), f"there is no {span}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_options_exist(path: Path) -> None:
    known = {option for each in COMMANDS.values() for param in each.params for option in param.opts}
    named = {option for span in spans(path) if span.startswith("--") for option in re.findall(r"--[a-z-]+", span)}
    assert named <= known


def listed(text: str) -> set[str]:
    """Paths of an annotated tree: two blanks a level, the names of folders end with a slash."""
    found, above = set(), []
    for line in text.splitlines():
        above[(len(line) - len(line.lstrip())) // 2 :] = [line.split()[0]]
        found.add("".join(above))
    return found


def content(folder: Path) -> Iterator[Path]:
    """Folders, and files of code; not those of rooms with a README of their own."""
    for path in folder.iterdir():
        if (path / "kustomization.yaml").exists():
            continue  # a file that Kubernetes' tools want in a folder of its own
        if path.is_dir() and any(file.is_file() and "__pycache__" not in file.parts for file in path.rglob("*")):
            yield path
            if not (path / "README.md").exists():
                yield from content(path)
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield path


def test_the_tree_has_all_folders() -> None:
    """Rooms say themselves what is in them."""
    (tree,) = [block.text for block in blocks(ROOT / "README.md") if block.heading == "The tree"]
    there = [*ROOMS, *(path for room in ROOMS for path in content(room) if path.is_dir())]
    assert listed(tree) == {f"{name_of(path)}/" for path in there}


@pytest.mark.parametrize("path", [path for path in READMES if "\n## Files\n" in path.read_text()], ids=name_of)
def test_a_room_lists_its_files(path: Path) -> None:
    (tree,) = [block.text for block in blocks(path) if block.heading == "Files"]
    there = {each.relative_to(path.parent).as_posix() + "/" * each.is_dir() for each in content(path.parent)}
    assert listed(tree) == there


def losses() -> list[dict[str, str]]:
    (table,) = [table for table in tables(ROOT / "stages/train/README.md") if table[0][:2] == ["loss", "equation"]]
    return [dict(zip(table[0], row, strict=True)) for row in table[1]]


def test_the_table_of_losses_is_that_of_the_classes() -> None:
    shared = {"a": "ld_alpha", "b": "wpo", "c": "divergence"}
    told, own = {}, {}
    for row in losses():
        name = row["loss"].split("`")[1]
        fields = re.findall(r"`(\w+)`(?: \([^)]*\))? ([\w.]+)", row["own fields, with defaults"])
        told[name] = (
            {field: yaml.safe_load(value) for field, value in fields},
            {shared[letter] for letter in row["shared"].split()},
            set(row["needs"].replace("pairs with a margin", "pairs").split(", ")),
        )
    for name, kind in BY_NAME.items():
        if name == "sum":
            continue
        loss: Any = kind()
        fields = set(kind.model_fields) - {"name", "weight", "divergence_alpha"}
        needs = {"labels" if loss.labelled else "pairs"}
        needs |= {"reference"} if loss.reference else set()
        needs |= {"the step"} if loss.coupled else set()
        common = fields & set(shared.values())
        own[name] = {field: getattr(loss, field) for field in fields - common}, common, needs
    assert told == own


SECTIONS: dict[str, type[BaseModel]] = {
    "shard.columns": Columns,
    "cluster": Cluster,
    "engine": EngineResources,
    "shard.sources": Source,
    "train.lora": Lora,
    "score.accept": Acceptance,
    "sample": SampleConfig,
    "shard": ShardConfig,
    "score": ScoreConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    **{
        f"cluster.{name}": Cluster.model_fields[name].annotation
        for name in ("sample", "judge", "shard", "score", "train", "evaluate")
    },
}


def test_tables_of_fields_are_those_of_the_sections() -> None:
    told = {}
    for path in READMES:
        for header, rows in tables(path):
            if match := re.fullmatch(r"`([\w.]+)` field", header[0]):
                told[match[1]] = {row[0].strip("`"): row[1].strip("`") for row in rows}
    assert told.keys() == SECTIONS.keys()
    for section, fields in told.items():
        wanted = dict(SECTIONS[section].model_fields)
        elsewhere = EngineResources.model_fields if section in OF_ENGINES else {}  # in a table of their own
        if section == "cluster.evaluate":
            elsewhere = elsewhere | Asking.model_fields
        wanted = {name: field for name, field in wanted.items() if name not in elsewhere}
        assert fields.keys() == wanted.keys(), section
        for name, field in wanted.items():
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            if fields[name]:
                assert yaml.safe_load(fields[name]) == default, f"{section}.{name}"
            else:
                assert field.is_required() or isinstance(default, BaseModel), f"{section}.{name} has a default"


def is_field(key: str) -> bool:
    kinds: list[Any] = [Cluster if key.startswith("cluster.") else Recipe]
    for name in key.removeprefix("cluster.").split("."):
        if name == "loss":
            kinds = list(BY_NAME.values())
            continue
        fields = [kind.model_fields[name] for kind in kinds if name in kind.model_fields]
        if not fields:
            return False
        of = [inner for field in fields for inner in (field.annotation, *get_args(field.annotation))]
        kinds = [kind for kind in of if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return True


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_fields_exist(path: Path) -> None:
    for span in spans(path):
        if re.fullmatch(r"(shard|score|train|cluster)(\.[a-z_]+)+", span) and not span.endswith((".py", ".yaml")):
            assert is_field(span), f"there is no field {span}"


SNIPPETS = [(path, block.text) for path in READMES for block in blocks(path) if block.language == "yaml"]


@pytest.mark.parametrize(("path", "text"), SNIPPETS, ids=[name_of(path) for path, _ in SNIPPETS])
def test_a_snippet_loads(path: Path, text: str, tmp_path: Path) -> None:
    """As a part of a recipe or cluster file: the first line, a comment, says of which."""
    files: dict[str, Any] = {
        "# my.yaml": {"model": "m", "shard": {"source": "s.jsonl"}, "score": {}, "train": {}},
        "# cluster.yaml": {},
        "# alone.yaml": {},  # a whole recipe
    }
    which = text.splitlines()[0]
    assert which in files, f"{name_of(path)}: the first line of a snippet is one of {', '.join(files)}"
    for section, value in yaml.safe_load(text).items():
        before = files[which].get(section)
        if section == "shard" and "sources" in value:
            del before["source"]
        files[which][section] = before | value if isinstance(before, dict) else value
    for name, sections in files.items():
        (tmp_path / name.removeprefix("# ")).write_text(yaml.safe_dump(sections))
    recipe = "alone.yaml" if which == "# alone.yaml" else "my.yaml"
    load(tmp_path / recipe, tmp_path / "cluster.yaml", [])


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_json_can_be_read(path: Path) -> None:
    for block in blocks(path):
        if block.language == "json":
            json.loads(block.text)
