"""YAML files and values, read strictly: what YAML leaves open or takes silently is refused by name and line."""

from pathlib import Path
from typing import Any

import yaml

from stages.errors import RecipeError

MOST = 1_000_000  # values of a file
MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


def is_recipe(name: str) -> bool:
    """And not the name of an artifact or a folder."""
    return Path(name).suffix in (".yaml", ".yml")


def read(path: Path) -> dict[str, Any]:
    """The sections of a file. Raises RecipeError where there is no such file, or it holds none."""
    try:
        content = parse(path.read_bytes().decode("utf-8-sig"), str(path))
    except FileNotFoundError as error:
        raise RecipeError(
            f"there is no file {path} (looked from {Path.cwd()}). Name one that is there: raydpo recipes lists those "
            "shipped, and raydpo init DATA MODEL writes one"
        ) from error
    except IsADirectoryError as error:
        raise RecipeError(f"{path} is a folder. Name the YAML file in it") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}. Make it readable, or name another file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not text in UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8"
        ) from error
    if content is None:
        raise RecipeError(f"{path} is empty; see configs/ for examples")
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no sections; see configs/ for examples")
    return content


def parse(text: str, name: str) -> Any:
    """The value that `text` is, in a file or an option called `name`. Raises RecipeError where it is not YAML."""
    try:
        value = yaml.load(text, _Strict)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        tab = "'\\t'" in str(error.problem)
        advice = "Indent with spaces: YAML takes no tabs" if tab else "Put quotes around what is meant as text"
        told = f"{_place(error.problem_mark)}{error.problem}. {getattr(error, 'note', None) or advice}"
        raise RecipeError(f"{name} is not YAML: {told}") from error
    except yaml.reader.ReaderError as error:
        raise RecipeError(
            f"{name} is not YAML: {error.reason} at character {error.position}. Save it as UTF-8"
        ) from error
    except RecursionError as error:
        raise RecipeError(f"{name} is not YAML that can be read: it is nested too deeply") from error
    if _spread(value, {}, set()) > MOST:
        raise RecipeError(
            f"{name} has aliases (&name, *name) that stand for more than {MOST:,} values, or for what they stand in. "
            "Write out what is meant"
        )
    return value


def _spread(value: Any, known: dict[int, int], above: set[int]) -> int:
    """How many values there are with all aliases written out, which YAML says in no space; too many in a circle."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in above:
        return MOST + 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = min(MOST + 1, 1 + sum(_spread(each, known, above | {id(value)}) for each in inner))
    return known[id(value)]


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


class _Strict(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """PyYAML takes the last of several equal keys. Asked here, before what `<<` merges is put beside them."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if (first := seen.get((key.tag, key.value))) is not None:
                    lines = " and ".join(dict.fromkeys((str(first.line + 1), str(key.start_mark.line + 1))))
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value} is there twice, on line {lines}", note="Keep one of them"
                    )
                seen[key.tag, key.value] = key.start_mark
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML raises whatever Python does of a date like 2024-13-45 or of `!!bool perhaps`, without the line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value} is no {kind}", problem_mark=node.start_mark
            ) from error
