"""The cluster file that `init` writes, with the reason of each line."""

from pipeline.begin.choices import Training, score_resources
from pipeline.begin.machine import Machine
from pipeline.begin.model import Model
from pipeline.begin.page import Page


def cluster_text(model: Model, machine: Machine, training: Training, samples: bool, schema: str) -> str:
    """`samples`: the recipe draws completions."""
    page = Page()
    page.note(f"yaml-language-server: $schema={schema}")
    page.note("Where to do it, begun by `raydpo init`: nothing here changes a result but by rounding.")
    page.note(f"This machine has {machine.told}. For others see configs/clusters.")
    page.field("root", "runs", "of all artifacts: a folder here, one that all nodes see, or object storage", indent=0)
    scoring = score_resources(model, machine)
    if samples:
        drawing = {key: value for key, value in scoring.value.items() if key != "max_tokens_per_batch"}
        page.section("sample")
        for key, value in drawing.items():
            page.field(key, value)
    page.section("score")
    page.note(scoring.why, indent=2)
    for key, value in scoring.value.items():
        page.field(key, value)
    page.section("train")
    page.note(f"Training takes {training.fits}.", indent=2)
    for key, each in training.cluster.items():
        page.field(key, each.value, each.why)
    if machine.gpus and machine.gpu_memory:
        page.field("memory_gb", round(machine.gpu_memory / 1e9), "of a GPU: `raydpo plan` says whether a run fits")
    return page.text
