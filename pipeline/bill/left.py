"""How much of a stage is to be done: what earlier artifacts answer, and what a stopped run has finished, is not."""

from pipeline.plan import State, Step
from pipeline.store import Store
from stages.artifacts import PreferencePairs


def left_of_scoring(step: Step, store: Store) -> float:
    """The share of its work."""
    if step.state != State.PARTIAL:
        return step.new
    parts = len(PreferencePairs(store.folder("shard", step.payload["inputs"]["pairs"])).parts)
    finished = len(list(store.draft("score", step.fingerprint).glob("part-*.parquet")))
    return step.new * max(0.0, 1 - finished / parts)


def left_of_training(step: Step, store: Store, steps: int) -> float:
    """The share of its work: it goes on from its last checkpoint."""
    found = store.draft("train", step.fingerprint).glob("checkpoints/step-*/meta.json")
    done = max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)
    return max(0.0, 1 - done / steps)
