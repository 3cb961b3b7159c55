"""Pairs and the reference's log-probs as a `datasets` folder, with the columns that TRL's collator reads.

TRL 1.16 makes these columns itself, of texts and with the reference at hand, and looks at none that are there already.
So the folder's README has the few lines by which it takes them.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import schema, spans
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, RecipeError
from stages.progress import Progress, Silent

README = """---
configs:
- config_name: default
  data_files:
{files}
---
# {title}

Pairs of token ids, and the log-probs that the reference gives their completions (sums over a completion, nats).

{facts}

TRL 1.16 would tokenize texts, and load the reference to make these columns. With this it takes them as they are:

```python
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class Precomputed(DPOTrainer):
    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _precompute_ref_logps(self, dataset, *_):
        return dataset


pairs = load_dataset("{folder}")
trainer = Precomputed(
    AutoModelForCausalLM.from_pretrained("{model}", dtype="float32"),
    args=DPOConfig(output_dir="dpo", precompute_ref_log_probs=True, max_length=None),
    processing_class=AutoTokenizer.from_pretrained("{model}"),
    train_dataset=pairs["train"],
)
trainer.train()
```

`max_length` stays `None`: the log-probs are of whole completions.
"""


def export_trl(
    pairs: PreferencePairs, logprobs: ReferenceLogprobs, folder: Path, title: str, model: str,
    facts: dict[str, str], progress: Progress | None = None,
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Write `folder`, which must not be there, a part at a time; rows by split, and rows left out by reason.

    `facts` are told in its README. Raises RecipeError where the folder is there, ContractError where the pairs are
    labelled completions or none can be written.
    """
    if pairs.labelled:
        raise ContractError(
            f"PreferencePairs {pairs.folder.name} holds labelled completions, and TRL's DPO takes pairs. Set "
            "shard.rows: pairs"
        )
    if folder.exists():
        raise RecipeError(f"{folder} is there already. Name a folder that is not, or remove it")
    logprobs.check_scored_from(pairs)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    written, aside, progress = Counter[str](), Counter[str](), progress or Silent()
    progress.start(len(pairs.parts), 0, "parts")
    for number, part in enumerate(pairs.parts):
        table, reasons = rows(one := pairs.read(part), logprobs.read(part, one))
        aside += reasons
        for split in pc.unique(table["split"]).to_pylist():
            chosen = table.filter(pc.equal(table["split"], split)).drop_columns("split")
            schema.write_part(chosen, unfinished / "data" / f"{named(split)}-{number:05d}.parquet")
            written[named(split)] += len(chosen)
        progress.advance(number + 1)
    if not written:
        raise ContractError(f"none of the pairs of {pairs.folder.name} can be told to TRL: {dict(aside)}")
    files = "\n".join(
        f"  - split: {split}\n    path: data/{split}-*.parquet" for split in sorted(written, reverse=True)
    )
    told = facts | {"Rows": _counts(written)} | ({"Left out": _counts(aside)} if aside else {})
    text = README.format(
        files=files, title=title, folder=folder.resolve(), model=model,
        facts="\n".join(f"- {key}: {value}" for key, value in told.items()),
    )  # fmt: skip
    (unfinished / "README.md").write_text(text)
    unfinished.rename(folder)
    return {"written": dict(written), "left out": dict(aside)}


def rows(pairs: pa.Table, logprobs: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """A part and its log-probs [B] -> the rows that TRL can be told, and how many it cannot, by reason.

    It trains on all of a completion: what comes after the last trained token is cut off, and nobody has looked at it;
    a pair with other context in its completions cannot be told.
    """
    scored = pc.is_null(logprobs["error"]).to_numpy()
    one_span = np.ones(len(pairs), bool)
    for side in schema.PAIR_SIDES:
        one_span &= spans.counts(pairs[f"{side}_trained"]) == spans.stops(pairs[f"{side}_trained"])
    aside = Counter({"not scored": int((~scored).sum()), "context in a completion": int((scored & ~one_span).sum())})
    usable = pa.array(scored & one_span)
    pairs, logprobs = pairs.filter(usable), logprobs.filter(usable)
    columns = {
        "pair_id": pairs["pair_id"],
        "split": pairs["split"],
        "prompt_ids": pairs["prompt_ids"],
        **{f"{side}_ids": _cut(pairs[f"{side}_ids"], pairs[f"{side}_trained"]) for side in schema.PAIR_SIDES},
        **{name: logprobs[name] for name in ("ref_chosen_logps", "ref_rejected_logps")},
    }
    return pa.table(columns), +aside


def named(split: str) -> str:
    """As `datasets` may call a split: eval/red-team is eval.red_team."""
    return ".".join(re.sub(r"\W", "_", piece) for piece in split.split("/", 1))


def _cut(ids: pa.ChunkedArray, trained: pa.ChunkedArray) -> pa.ListArray:
    """Each completion as far as its last trained token."""
    column = ids.combine_chunks()
    stops, lengths = spans.stops(trained), column.value_lengths().to_numpy()
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = column.flatten().filter(pa.array(within < np.repeat(stops, lengths)))
    offsets = np.concatenate([[0], np.cumsum(stops)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items())
