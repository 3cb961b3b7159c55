"""The code of a judge that is a function: its module, and those beside it that it imports."""

import ast
import hashlib
import json
from pathlib import Path

from stages.errors import RecipeError


def modules_of(function: str, folder: str, field: str = "judge.function") -> dict[str, str]:
    """Name -> source of the function's module and all that it imports from its folder, themselves included.

    Raises RecipeError, which names the `field` of the recipe, where there is no such module or function, or one cannot
    be read.
    """
    name, _, attribute = function.partition(":")
    found: dict[str, str] = {}
    _collect(name, Path(folder), found, field)
    if name not in found:
        raise RecipeError(
            f"{field} {function}: there is no {name}.py in {Path(folder).resolve()}, the folder of the recipe, "
            "and a judge is taken from nowhere else"
        )
    defined = ast.parse(found[name]).body
    if not any(isinstance(each, ast.FunctionDef) and each.name == attribute for each in defined):
        names = ", ".join(each.name for each in defined if isinstance(each, ast.FunctionDef)) or "none"
        raise RecipeError(f"{field} {function}: {name}.py has no function {attribute}; it has {names}")
    return found


def digest_of(modules: dict[str, str]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()}"


def _collect(name: str, folder: Path, found: dict[str, str], field: str) -> None:
    path = folder / f"{name}.py"
    if name in found or not path.is_file():
        return
    try:
        found[name] = path.read_text()
        tree = ast.parse(found[name])
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise RecipeError(f"{field}: {path} cannot be read as Python: {error}") from error
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
        for each in names:
            _collect(each.partition(".")[0], folder, found, field)
