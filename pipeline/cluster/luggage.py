"""What travels with a submitted job: the code, both files, and all that the recipe names by a relative path.

Its size does not depend on what else lies in the checkout. What is named by an absolute path is taken as one that all
nodes see, and stays where it is.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.cluster.connection import CODE
from pipeline.recipe.sections import Recipe
from stages.errors import RecipeError
from stages.judge.config import FunctionJudge
from stages.judge.source import modules_of

MOST = 256 * 2**20  # bytes beside the code; it is kept in the memory of the head node, which takes 512 MiB in all
_CODE = ("pipeline", "stages", "configs")
_OWN = Path("submitted")  # of the recipe, what judges beside it, and the cluster file


class Luggage(NamedTuple):
    """A folder that becomes the working directory of the job, and where in it both files lie."""

    folder: Path
    recipe: Path
    cluster: Path


@contextmanager
def packed(recipe: Path, cluster: Path, what: Recipe, files: Iterable[Path]) -> Iterator[Luggage]:
    """Copies that live as long as the context. `files`: what the recipe's names were found to be, as they were named.

    Raises RecipeError where one lies above the working directory, or all of them are too large to travel.
    """
    named = sorted({path for path in files if not path.is_absolute()})
    _check(named)
    with tempfile.TemporaryDirectory(prefix="raydpo-submit-") as scratch:
        folder = Path(scratch)
        for part in _CODE:
            shutil.copytree(CODE / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        own = folder / _OWN
        (own / "cluster").mkdir(parents=True)
        for path in named:
            _copy(path, folder / path)
        for name, source in _judges(what).items():
            (own / f"{name}.py").write_text(source)
        shutil.copy(recipe, own / recipe.name)
        shutil.copy(cluster, own / "cluster" / cluster.name)
        yield Luggage(folder, _OWN / recipe.name, _OWN / "cluster" / cluster.name)


def _check(named: list[Path]) -> None:
    remedy = "Put it where all nodes see it, and name it by its absolute path; or in object storage"
    if above := next((path for path in named if ".." in path.parts), None):
        raise RecipeError(f"{above} lies outside of {Path.cwd()}, and a job takes along only what lies in it. {remedy}")
    sizes = {path: path.stat().st_size for path in named}
    if (total := sum(sizes.values())) > MOST:
        largest = max(sizes, key=lambda path: sizes[path])
        raise RecipeError(
            f"{len(named)} files that the recipe names by relative paths have {total / 1e6:,.0f} MB, the largest, "
            f"{largest}, {sizes[largest] / 1e6:,.0f} MB; at most {MOST / 1e6:,.0f} MB travel with a job. {remedy}"
        )


def _copy(path: Path, to: Path) -> None:
    if to.exists() and to.read_bytes() != path.read_bytes():
        raise RecipeError(f"{path}: in a job another file of this name is there, of raydpo itself. Rename the folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)


def _judges(what: Recipe) -> dict[str, str]:
    """Modules beside the recipe, by name: their sources."""
    found: dict[str, str] = {}
    if isinstance(what.judge, FunctionJudge):
        found |= modules_of(what.judge.function, what.judge.folder)
    if what.evaluate is not None and isinstance(what.evaluate.judge, str):
        found |= modules_of(what.evaluate.judge, what.evaluate.judge_folder)
    return found
