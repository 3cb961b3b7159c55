"""One of the two models as it writes: prompts in, completions out."""

from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from stages import schema
from stages.engine.generation import Generator
from stages.evaluate.job import PROMPTS_A_PART, Job

WRITTEN = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("stopped", pa.bool_()),
    ]
)


class Writer:
    """Its state is an engine; its effect is a file a call: what the model `who` writes to the prompts of a part."""

    def __init__(self, job: Job, who: str):
        self.job, self.who = job, who

    @cached_property
    def _prompts(self) -> pa.Table:
        return pq.read_table(self.job.prompts)

    @cached_property
    def _generator(self) -> Generator:
        """Made at the first call: an error of __init__ would reach the driver as the death of an actor."""
        config, sampling = self.job.config, self.job.config.sampling
        assert sampling is not None
        longest = max(map(len, self._prompts["ids"].to_pylist()))
        return Generator(self.job.model(self.who), config.dtype, longest, sampling, self.job.resources)

    def __call__(self, number: int) -> dict[str, int]:
        """Write part `number`; how many completions and tokens that were."""
        prompts = self._prompts.slice(number * PROMPTS_A_PART, PROMPTS_A_PART).to_pylist()
        made = self._generator.generate([(prompt["prompt_id"], prompt["ids"]) for prompt in prompts])
        tokenizer = self._generator.engine.get_tokenizer()
        rows = [
            {
                "prompt_id": prompt["prompt_id"],
                "sample": sample,
                "split": prompt["split"],
                "prompt": tokenizer.decode(prompt["ids"], skip_special_tokens=True),
                "prompt_ids": prompt["ids"],
                "text": completion.text,
                "ids": completion.ids,
                "stopped": completion.finish == "stop",
            }
            for prompt, completions in zip(prompts, made, strict=True)
            for sample, completion in enumerate(completions)
        ]
        schema.write_part(pa.Table.from_pylist(rows, schema=WRITTEN), self.job.written(self.who, number))
        return {"completions": len(rows), "tokens": sum(len(row["ids"]) for row in rows)}
