"""One of the two models as it reads: log-probs of held-out pairs, and of what both models wrote."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import schema
from stages.evaluate.evaluation import WRITERS
from stages.evaluate.job import Job
from stages.evaluate.prompts import id_of

_OF_A_PAIR = ("pair_id", "split", "source", "source_row")


class Reader:
    """Its state is the forward pass of training, of the model `who`; its effect is a file a call."""

    def __init__(self, job: Job, who: str, longest: int):
        self.job, self.who, self._longest = job, who, longest

    def __call__(self, what: str, which: Any) -> dict[str, int]:
        """The held-out "pairs" of a part, by its name; or the "samples" of a part, by its number. Counts of rows."""
        return {"pairs": self._see(which)} if what == "pairs" else {"scored": self._score(which)}

    @cached_property
    def _model(self) -> Any:
        """With its device. Made at the first call: an error of __init__ would be the death of an actor."""
        from stages.logps.reading.spread import load_spread  # with torch

        resources = self.job.resources
        return load_spread(self.job.model(self.who), self.job.config.dtype, self._longest, resources.gpus_per_actor)

    def _see(self, part: str) -> int:
        """What the loss sees of each held-out pair that has the log-probs which it needs."""
        from stages.train.objective.step_loss import logps_of

        rows = self._held_out(part)
        squares = any(getattr(term, "wpo", False) for term in self.job.config.loss.terms)
        columns: dict[str, Any] = {}
        if rows:
            seen: dict[str, np.ndarray] = {}
            for places, batch, values in self._forward(rows, squares):
                token_logps, log_squares = values if squares else (values, None)
                for name, column in logps_of(batch, token_logps, log_squares)._asdict().items():
                    seen.setdefault(name, np.zeros(len(rows), np.float32))[places] = column.cpu().numpy()
            columns = {name: [row[name] for row in rows] for name in (*_OF_A_PAIR, "graded")}
            columns["prompt_id"] = [id_of(row["prompt_ids"]) for row in rows]
            columns |= {f"seen/{name}": column for name, column in seen.items()}
        schema.write_part(pa.table(columns), self.job.seen(part))
        return len(rows)

    def _held_out(self, part: str) -> list[dict[str, Any]]:
        assert self.job.pairs is not None
        table = self.job.pairs.read(part)
        wanted = pc.not_equal(table["split"], "train")
        if self.job.logprobs is not None:
            scored = self.job.logprobs.read(part, table)
            for column in scored.column_names[1:]:
                table = table.append_column(column, scored[column])
            wanted = pc.and_(wanted, pc.is_null(table["error"]))
        if self.job.config.loss.positive_margin:
            wanted = pc.and_(wanted, pc.fill_null(pc.greater(table["margin"], 0.0), False))
        grades = table["margin"] if "margin" in table.column_names else pa.nulls(len(table), pa.float64())
        rows: list[dict[str, Any]] = table.append_column("graded", grades).filter(wanted).to_pylist()
        return rows

    def _score(self, number: int) -> int:
        """Log-probs of each token that both models wrote to the prompts of a part."""
        ours, theirs = (pq.read_table(self.job.written(who, number)).to_pylist() for who in WRITERS)
        rows = [
            {"pair_id": "", "prompt_ids": one["prompt_ids"], "chosen_ids": one["ids"], "rejected_ids": other["ids"],
             "margin": None}
            for one, other in zip(ours, theirs, strict=True)
        ]  # fmt: skip
        found: list[list[list[float]]] = [[], []]
        for side in found:
            side.extend([] for _ in rows)
        for places, batch, values in self._forward(rows, False):
            each = [value.tolist() for value in batch.layout.split(values.cpu())]
            for position, place in enumerate(places):
                found[0][place], found[1][place] = each[2 * position : 2 * position + 2]
        columns = {f"{writer}_by_{self.who}": side for writer, side in zip(WRITERS, found, strict=True)}
        schema.write_part(
            pa.table(columns, schema=pa.schema([(name, pa.list_(pa.float32())) for name in columns])),
            self.job.scored(self.who, number),
        )
        return len(rows)

    def _forward(self, rows: list[dict[str, Any]], squares: bool) -> Iterator[tuple[np.ndarray, Any, Any]]:
        """(which rows, their batch, log-probs of their tokens) of each forward pass."""
        import torch

        from stages.logps.budget import fill
        from stages.train.pairs.batch import Batch

        model, device = self._model
        sides = schema.sides(rows[0])
        lengths = np.array([sum(len(row[f"{each}_ids"]) for each in ("prompt", *sides)) for row in rows])
        order = np.argsort(-lengths, kind="stable")
        for piece in fill(lengths[order], self.job.resources.max_tokens_per_batch):
            places = order[piece]
            with torch.inference_mode():
                batch = Batch.of([rows[place] for place in places], model, device)
                yield places, batch, model(batch.layout, squares)
