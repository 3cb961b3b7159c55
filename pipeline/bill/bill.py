"""The bill of a plan: an item a stage, what a reference in the trainer would add, and what does not fit on the disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.bill.amounts import amount_of
from pipeline.bill.costs import item_of, reference_of
from pipeline.bill.item import Item, Reference
from pipeline.plan import State, Step
from pipeline.recipe.sections import Cluster
from pipeline.store import Store


@dataclass(frozen=True)
class Bill:
    items: list[Item]
    reference: Reference | None  # of the first training that is to be done
    warnings: list[str]

    def of(self, stage: str) -> Item:
        return next(each for each in self.items if each.stage == stage)


def bill_of(steps: list[Step], cluster: Cluster, store: Store) -> Bill:
    """Raises RecipeError where a source cannot be read."""
    named = {step.name: step for step in steps}
    amounts = {step.name: amount_of(step, named) for step in steps if step.stage.name == "shard"}
    items: dict[str, Item] = {}
    reference = None
    for step in steps:
        amount = amounts.get(step.sources.get("pairs", step.name))
        items[step.name] = item_of(step, amount, cluster, store)
        if reference is None and step.stage.name == "train" and step.state in (State.MISS, State.PARTIAL):
            scoring = items.get(step.sources.get("logprobs", ""))
            reference = reference_of(step, amount, items[step.name], scoring, cluster)
    return Bill(list(items.values()), reference, _too_much(list(items.values()), store))


def _too_much(items: list[Item], store: Store) -> list[str]:
    wanted = sum(each.bytes for each in items if each.bytes is not None)
    if not isinstance(store.work, Path) or not store.work.exists():
        return []
    free = shutil.disk_usage(store.work).free
    if wanted <= free:
        return []
    return [
        f"about {wanted / 1e9:.1f} GB will be written under {store.work}, and its disk has {free / 1e9:.1f} GB free. "
        "Choose another: --set cluster.root=FOLDER; or keep fewer checkpoints: --set cluster.train.keep_checkpoints=1"
    ]
