"""raydpo doctor: whether runs will work here."""

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.commands.arguments import LAPTOP, AsJson, ClusterFile, errors
from pipeline.commands.keeping import OfStore
from pipeline.recipe.load import load_cluster

_COLOURS = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor_command(cluster: ClusterFile = LAPTOP, set_: OfStore = None, as_json: AsJson = False) -> None:
    """Look at this machine: versions, devices, memory, disks, ports, names. Status 1 where something will not work."""
    with errors(Console(stderr=True)):
        where = load_cluster(cluster, set_ or [])
    from pipeline.doctor.machine import machine
    from pipeline.doctor.packages import packages

    console, found = Console(), []
    for finding in (each for look in (packages(), machine(where)) for each in look):
        found.append(finding)
        if not as_json:
            level = f"[{_COLOURS[finding.level]}]{finding.level:8}[/]"
            console.print(f"{level} {finding.about}: {escape(finding.told)}", soft_wrap=True, highlight=False)
            if finding.remedy:
                console.print(f"{'':9}-> {escape(finding.remedy)}", soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    raise typer.Exit(1 if any(each.level == "fault" for each in found) else 0)
