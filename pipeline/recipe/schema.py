"""JSON schemas of recipe and cluster files, for editors: made of the sections, with what the READMEs say of each field.

python -m pipeline.recipe.schema    # writes configs/*.schema.json anew
"""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.recipe.evaluated import MODELS
from pipeline.recipe.sections import Cluster, Recipe
from stages.config import Config
from stages.train.objective.named.loss import ALIASES, BY_NAME

_ROOT = Path(__file__).parents[2]
FILES: dict[str, type[Config]] = {"recipe": Recipe, "cluster": Cluster}
# Whose fields a table of a README is about, by the name that the table has.
_TABLES = {
    "shard.columns": "Columns", "shard.sources": "Source", "train.lora": "Lora", "score.accept": "Acceptance",
    "sample": "SampleConfig", "shard": "ShardConfig", "score": "ScoreConfig", "train": "TrainConfig",
    "evaluate": "EvaluateConfig", "cluster": "Cluster", "cluster.sample": "SampleResources",
    "cluster.judge": "JudgeResources", "cluster.shard": "ShardResources", "cluster.score": "ScoreResources",
    "cluster.train": "TrainResources", "cluster.evaluate": "EvaluateResources",
}  # fmt: skip
_ENGINES = ("SampleResources", "ScoreResources", "EvaluateResources")


def schema_of(kind: str) -> dict[str, Any]:
    """Of a "recipe" or a "cluster" file, as it may be written: what `load` fills in need not be there."""
    section = FILES[kind]
    schema = section.model_json_schema()
    defs = schema.setdefault("$defs", {})
    if section is Recipe:
        _as_written(schema, defs)
    for name, fields in _described().items():
        described = schema if name == section.__name__ else defs.get(name, {})
        for field, what in fields.items():
            if field in described.get("properties", {}):
                described["properties"][field]["description"] = what
    told = f"A raydpo {kind} file: {'what to do' if section is Recipe else 'where to do it'}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": told} | _plain(schema)


def text_of(kind: str) -> str:
    return json.dumps(schema_of(kind), indent=1) + "\n"


def path_of(kind: str) -> Path:
    return _ROOT / "configs" / f"{kind}.schema.json"


def _as_written(schema: dict[str, Any], defs: dict[str, Any]) -> None:
    """With `model`, from which others follow, and losses by their names alone, in lists, or as sections."""
    schema["properties"]["model"] = {"type": "string"}
    schema["required"] = []
    places = [*MODELS.items(), ("sample", "tokenizer"), ("sample", "models"), ("shard", "source")]
    for section, key in places:
        required = defs[_class_of(section)].get("required", [])
        if key in required:
            required.remove(key)
    names = [*BY_NAME, *ALIASES]
    single: list[dict[str, Any]] = [{"enum": [name for name in names if name != "sum"]}]
    for name, kind in BY_NAME.items():
        known = [name, *(alias for alias, same in ALIASES.items() if same == name)]
        defs[kind.__name__]["properties"]["name"] = {"enum": known}
        if name != "sigmoid":  # a section without a name is DPO's
            defs[kind.__name__]["required"] = ["name", *defs[kind.__name__].get("required", [])]
        if name != "sum":
            single.append({"$ref": f"#/$defs/{kind.__name__}"})
    defs["OneLoss"] = {"anyOf": single}
    several = {"type": "array", "items": {"$ref": "#/$defs/OneLoss"}, "minItems": 2}
    summed = {"$ref": f"#/$defs/{BY_NAME['sum'].__name__}"}
    defs["Loss"] = {"anyOf": [{"$ref": "#/$defs/OneLoss"}, several, summed]}
    defs[BY_NAME["sum"].__name__]["properties"]["terms"] = several
    for section in ("train", "evaluate"):
        defs[_class_of(section)]["properties"]["loss"] = {"$ref": "#/$defs/Loss"}


def _class_of(section: str) -> str:
    return _TABLES[section]


def _described() -> dict[str, dict[str, str]]:
    """Class -> field -> what the READMEs' tables say of it."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted([*_ROOT.glob("pipeline/**/README.md"), *_ROOT.glob("stages/**/README.md")]):
        for table in re.findall(r"(?:^\|.*\|\n)+", path.read_text(), flags=re.MULTILINE):
            header, _, *rows = ([cell.strip() for cell in _cells(line)] for line in table.splitlines())
            named = re.fullmatch(r"`([\w.]+)` field", header[0])
            for each in _classes(named[1]) if named else ["Recipe"] if header[0] == "field" else []:
                found.setdefault(each, {}).update({row[0].strip("`"): _words(row[-1]) for row in rows if row[-1]})
    return found


def _classes(table: str) -> list[str]:
    if table == "engine":
        return list(_ENGINES)
    return [_TABLES[table]] if table in _TABLES else []


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def _words(markdown: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", markdown).replace("**", "")


def _plain(node: Any) -> Any:
    """Without titles that only repeat a field's name, and what JSON schema does not know."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: {name: _plain(each) for name, each in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in node.items()
        if key not in ("title", "discriminator") and not (key == "required" and not value)
    }


def main() -> None:
    for kind in FILES:
        path_of(kind).write_text(text_of(kind))


if __name__ == "__main__":
    main()
