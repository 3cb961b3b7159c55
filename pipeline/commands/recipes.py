"""raydpo recipes: those shipped, a line each."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from pipeline.commands.arguments import CONFIGS, AsJson


def recipes_command(as_json: AsJson = False) -> None:
    """List the recipes that are shipped: file, what it is for, model, loss, data."""
    rows = [_row(path) for path in sorted((CONFIGS / "recipes").rglob("*.yaml"))]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console = Console()
    for row in rows:
        console.print(f"[bold]{escape(row['recipe'])}[/]: {escape(row['what'])}", soft_wrap=True, highlight=False)
        console.print(
            f"  {escape(row['model'])}, {escape(row['loss'])}, {escape(row['data'])}", soft_wrap=True, highlight=False
        )


def _row(path: Path) -> dict[str, str]:
    """Read leniently: what a recipe means is for `raydpo plan` to say."""
    text = path.read_text()
    content: dict[str, Any] = yaml.safe_load(text)
    file = os.path.relpath(path, Path.cwd()) if path.is_relative_to(Path.cwd()) else str(path)
    return {
        "recipe": file,
        "model": str(content.get("model", "")),
        "loss": _loss(content.get("train", {}).get("loss", "sigmoid")),
        "data": _data(content),
        "what": _first_sentence(text),
    }


def _loss(loss: Any) -> str:
    if isinstance(loss, list):
        return " + ".join(map(_loss, loss))
    return str(loss.get("name", "sigmoid")) if isinstance(loss, dict) else str(loss)


def _data(content: dict[str, Any]) -> str:
    shard = content.get("shard", {})
    several = [each.get("source", "") for each in shard.get("sources", [])] or shard.get("first_of", [])
    own = content.get("sample", {}).get("source") or shard.get("source") or ", ".join(several)
    return f"prompts of {own}" if "sample" in content else str(own)


def _first_sentence(text: str) -> str:
    """Of the comment that a recipe begins with, but for the line that is an editor's."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "yaml-language-server" not in line:
            lines.append(line.lstrip("# ").strip())
    said = " ".join(lines)
    return said.split(". ")[0].split(" Source: ")[0].rstrip(".")
