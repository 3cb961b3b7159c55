"""Scores with the forward pass of training: the parity oracle, and the way for models that vLLM lacks."""

import numpy as np
import pyarrow as pa
import torch

from stages import schema
from stages.logps.budget import fill
from stages.logps.check.probe import PROBE
from stages.logps.reading.spread import load_spread
from stages.score.config import ScoreConfig, ScoreResources


class TorchScorer:
    def __init__(self, config: ScoreConfig, resources: ScoreResources, longest: int):
        self.max_tokens = resources.max_tokens_per_batch
        self.model, self.device = load_spread(
            config.model, config.dtype, longest, resources.gpus_per_actor, config.quantize
        )
        if resources.compile:
            self._compile()

    @property
    def path(self) -> str:
        """Which way of computing is used, for the record."""
        return "torch, prompts shared" if self.model.shares_prompts else "torch, two sequences"

    @torch.inference_mode()
    def _compile(self) -> None:
        """Before the first part, on 832 tokens: a number that also is a size of the model would be compiled in."""
        self.model.compile_layers()
        self.model(self.model.lay_out(PROBE * 60).to(self.device))

    @torch.inference_mode()
    def token_logps(self, pairs: pa.Table) -> list[list[float]]:
        """Log-probs of the trained tokens of 2B completions of B pairs: chosen, rejected, chosen, ... Nats."""
        first, second = schema.sides(pairs.column_names)
        columns = (pairs[f"{name}_ids"].to_pylist() for name in ("prompt", first, second))
        rows = list(zip(*columns, strict=True))
        spans = list(zip(*(pairs[f"{side}_trained"].to_pylist() for side in (first, second)), strict=True))
        lengths = np.sum(schema.num_tokens(pairs), axis=0)
        order = np.argsort(-lengths, kind="stable")
        scored: list[list[float]] = [[]] * (2 * len(rows))
        for piece in fill(lengths[order], self.max_tokens):
            batch = order[piece]
            layout = self.model.lay_out([rows[i] for i in batch], [spans[i] for i in batch]).to(self.device)
            values = [row.tolist() for row in layout.split(self.model(layout).cpu())]
            for position, i in enumerate(batch):
                scored[2 * i : 2 * i + 2] = values[2 * position : 2 * position + 2]
        return scored
