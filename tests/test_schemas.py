"""The JSON schemas that editors read: current, and as strict as `load`, but for what only the whole file says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT

from pipeline.recipe.schema import FILES, path_of, text_of

SHIPPED = [(kind, path) for kind in FILES for path in sorted((ROOT / "configs" / f"{kind}s").rglob("*.yaml"))]


def complaints(kind: str, content: Any) -> list[str]:
    schema = json.loads(path_of(kind).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return [each.message for each in jsonschema.Draft202012Validator(schema).iter_errors(content)]


@pytest.mark.parametrize("kind", FILES)
def test_a_schema_is_current(kind: str) -> None:
    assert path_of(kind).read_text() == text_of(kind), "a field or its line in a README has changed: make schemas"


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=[path.stem for _, path in SHIPPED])
def test_what_is_shipped_fits_and_names_its_schema(kind: str, path: Path) -> None:
    text = path.read_text()
    assert complaints(kind, yaml.safe_load(text)) == []
    schema = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == path_of(kind)


@pytest.mark.parametrize(
    ("kind", "content", "fits"),
    [
        ("recipe", {"model": "m", "shard": {"source": "s"}, "score": None, "train": {"loss": "ipo"}}, True),
        ("recipe", {"train": {"loss": ["dpo", {"name": "sft", "weight": 0.2}]}}, True),
        ("recipe", {"train": {"loss": {"beta": 0.2}}}, True),
        ("recipe", {"judge": {"name": "delta"}, "rounds": {"count": 2, "sample": True}}, True),
        ("recipe", {"train": {"loss": {"name": "ipo", "bta": 0.2}}}, False),
        ("recipe", {"train": {"loss": "dop"}}, False),
        ("recipe", {"train": {"lr": "fast"}}, False),
        ("recipe", {"shrad": {}}, False),
        ("cluster", {"train": {"workers": {"min": 1, "max": 4}}, "root": "s3://b"}, True),
        ("cluster", {"train": {"wokers": 4}}, False),
    ],
)
def test_what_fits(kind: str, content: dict[str, Any], fits: bool) -> None:
    assert (complaints(kind, content) == []) == fits


def test_fields_are_described() -> None:
    """As in the READMEs."""
    schema = json.loads(path_of("recipe").read_text())["$defs"]
    for section in ("ShardConfig", "ScoreConfig", "TrainConfig", "Lora"):
        bare = [name for name, field in schema[section]["properties"].items() if "description" not in field]
        assert len(bare) <= len(schema[section]["properties"]) // 3, bare
