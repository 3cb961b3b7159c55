"""raydpo init: a recipe and a cluster file for data, a model and this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.begin.choices import max_length, training
from pipeline.begin.cluster_file import cluster_text
from pipeline.begin.data import Data
from pipeline.begin.machine import Machine
from pipeline.begin.model import Model
from pipeline.begin.recipe_file import JUDGE, judge_module, recipe_text
from pipeline.commands.arguments import CONFIGS, errors
from pipeline.recipe.load import load
from pipeline.view.tables import print_line
from stages.errors import RecipeError


def init_command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="a file, a folder or a pattern of rows")],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a model's folder, or a hub name that is on this machine")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the recipe to write; the cluster file beside it")] = Path(
        "my.yaml"
    ),
) -> None:
    """Look at data, model and machine, and write a recipe and a cluster file with the reason of each line."""
    console = Console()
    with errors(Console(stderr=True)):
        cluster, judge = out.with_name(f"{out.stem}.cluster.yaml"), out.with_name(f"{judge_module(out)}.py")
        _check_free(out, cluster)
        if (Path(data) / "config.json").is_file() and not Path(model).is_dir():
            raise RecipeError(f"{data} is a model, by its config.json. DATA comes first: raydpo init {model} {data}")
        of_model = Model.at(model)
        seen, machine = Data.at(data, of_model), Machine.here()
        ways = training(of_model, machine, max_length(seen, of_model).value)
        files = {
            out: recipe_text(seen, of_model, machine, ways, out, _schema("recipe", out)),
            cluster: cluster_text(of_model, machine, ways, seen.kind == "prompts", _schema("cluster", cluster)),
        }
        if seen.kind == "prompts":
            _check_free(judge)
            files[judge] = JUDGE.format(recipe=out.name)
        for path, text in files.items():
            _write(path, text)
        load(out, cluster, [])
    for line in (f"data: {seen.told}", f"model: {of_model.told}", f"machine: {machine.told}"):
        print_line(line, console)
    for notice in seen.notices:
        print_line(f"Warning: {notice}", console)
    names = " and ".join(filter(None, (", ".join(map(str, list(files)[:-1])), str(list(files)[-1]))))
    print_line(f"Written: {names}. Next:", console)
    for command in ("plan", "run"):
        console.print(f"  raydpo {command} {out} --cluster {cluster}", soft_wrap=True, highlight=False)


def _check_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise RecipeError(f"{path} is there already, and init overwrites nothing. Name another: --out FILE")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}. Name another place: --out FILE") from error


def _schema(kind: str, path: Path) -> str:
    """Where an editor finds it, from the file's folder if that lies in this checkout."""
    schema, folder = CONFIGS / f"{kind}.schema.json", path.parent.resolve()
    inside = folder.is_relative_to(CONFIGS.parent.resolve())
    return Path(os.path.relpath(schema.resolve(), folder)).as_posix() if inside else schema.resolve().as_posix()
