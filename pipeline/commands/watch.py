"""raydpo watch: the report of some runs, served while they go on."""

from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.arguments import LAPTOP, ClusterFile, Overrides, errors
from pipeline.commands.report import Recipes, runs_of
from stages.errors import RecipeError


def watch_command(
    recipes: Recipes,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free")] = 8899,
    host: Annotated[str, typer.Option(help="who may look: this machine alone, or 0.0.0.0, everybody")] = "127.0.0.1",
) -> None:
    """Serve the report of runs that have not begun, go on or have ended. Ctrl-C ends it; it stops no run."""
    from pipeline.view.live import Live, server

    console = Console()
    runs = runs_of(recipes, cluster, set_)
    with errors(Console(stderr=True)):
        try:
            served = server(Live(runs), host, port)
        except OSError as error:
            raise RecipeError(
                f"nothing can be served at {host}:{port}: {error.strerror}. Choose another: --port 0 takes a free one"
            ) from error
    name = f"[{host}]" if ":" in host else host
    console.print(f"http://{name}:{served.server_address[1]}/  Ctrl-C ends it", soft_wrap=True, highlight=False)
    try:
        served.serve_forever()
    except KeyboardInterrupt:
        console.print("ended")
    finally:
        served.server_close()
