"""The recipe that `init` writes, with the reason of each line."""

import re
from pathlib import Path

from pipeline.begin.choices import Training, eval_fraction, global_batch, lr, max_length
from pipeline.begin.data import Data
from pipeline.begin.machine import Machine
from pipeline.begin.model import Model
from pipeline.begin.page import Page

KTO = "each row has one answer and a label, and KTO learns from these; others: bco, apo_zero_unpaired"
DPO = "where to begin; others: stages/train/README.md. To compare: raydpo sweep FILE --grid train.loss=dpo,ipo"
JUDGES = (
    "Who says which of two answers is better is not to be seen in prompts. Here it is a function in {module}.py beside "
    "this file: (prompt, completion) -> a number, higher is better. Write your own there, or take one of these instead:"
)
OTHERS = (
    "{name: reward_model, model: ORG/MODEL}: a sequence classification model of one label",
    "{name: llm, endpoint: 'http://HOST:8000/v1', model: NAME}: a chat model compares each two, in both orders",
    "{name: delta}: with sample.models: [BETTER, WORSE], what the first writes is chosen, the last's rejected",
)


def recipe_text(data: Data, model: Model, machine: Machine, training: Training, path: Path, schema: str) -> str:
    page, longest = Page(), max_length(data, model)
    page.note(f"yaml-language-server: $schema={schema}")
    page.note(f"What to do, begun by `raydpo init`, of {Path(data.source).name} and {Path(model.name).name}: edit it.")
    page.note(f"The data: {data.told}.")
    page.note(f"The model: {model.told}.")
    for notice in data.notices:
        page.note(f"Look at this: {notice}")
    page.field("model", model.name, "tokenizer, reference and start of the policy", indent=0)
    if data.kind == "prompts":
        _sample_and_judge(page, data, model, machine, path)
    share = eval_fraction(data)
    page.section("shard")
    if data.kind != "prompts":
        page.field("source", data.source)
    if data.columns:
        page.field("columns", data.columns, "by their names; the usual ones are prompt, chosen and rejected")
    if data.as_chat:
        page.field("text", "chat", "plain strings become messages, since the model has a chat template")
    if data.kind == "labelled":
        page.field("rows", "labelled", "not pairs: one answer with its label")
    if data.kind == "prompts":
        most = min(longest.value + drawn(model), model.context or 2**20)
        page.field("max_length", most, f"tokens of prompt and answer, of which {drawn(model)} are drawn at most")
    else:
        page.field("max_length", longest.value, longest.why)
    page.field("eval_fraction", share.value, share.why)
    _score(page, machine, training)
    page.section("train")
    if machine.gpus:
        page.field("dtype", "bfloat16", "on GPUs; what is trained stays in float32")
        page.field("export_dtype", "bfloat16")
    name, why = ("kto", KTO) if data.kind == "labelled" else ("dpo", DPO)
    page.field("loss", {"name": name, "beta": 0.1}, why)
    batch, rate = global_batch(data, share.value), lr(model, "lora" in training.recipe)
    page.field("global_batch", batch.value, batch.why)
    page.field("epochs", 1, "more of them learn the pairs by heart soon; look at eval/loss")
    page.field("lr", rate.value, rate.why)
    for key, each in training.recipe.items():
        page.field(key, each.value, each.why)
    _evaluate(page, training)
    return page.text


def judge_module(path: Path) -> str:
    """The name of the module of a recipe's judge: a word of Python."""
    return (
        re.sub(r"\W", "_", path.stem if re.match("[A-Za-z_]", path.stem) else f"of_{path.stem}", flags=re.A) + "_judge"
    )


JUDGE = '''"""The judge of {recipe}: which of the answers to a prompt is better."""


def score(prompt: str, completion: str) -> float:
    """Higher is better. An example to be replaced: the share of words that are not said before."""
    words = completion.lower().split()
    return len(set(words)) / len(words) if words else 0.0
'''


def drawn(model: Model) -> int:
    """Tokens of an answer, at most: half of a short context is left to prompts."""
    return min(256, (model.context or 2**20) // 2)


def _sample_and_judge(page: Page, data: Data, model: Model, machine: Machine, path: Path) -> None:
    page.gap()
    page.note("The data are prompts alone: the model answers each of them several times (sample), a judge says which")
    page.note("answer is better (judge), and the best and the worst of a prompt make a pair.")
    page.section("sample")
    page.field("source", data.source)
    page.field("num_samples", 4, "answers to each prompt; two are the least, more find better and worse ones")
    page.field("max_tokens", drawn(model), "of an answer; longer ones are cut there")
    asked = 512
    while asked < 1.1 * max(data.lengths, default=0) + 40:
        asked *= 2
    asked = min(asked, (model.context or 2**20) - drawn(model))
    page.field("max_prompt_length", asked, f"tokens: the longest of the first {data.looked} has about {data.longest}")
    if not machine.gpus:
        page.field("dtype", "float32", "on CPUs")
    page.gap()
    module = judge_module(path)
    page.note(JUDGES.format(module=module))
    for other in OTHERS:
        page.note(f"  {other}")
    page.note("Rounds of it, each from what the policy has become: rounds: {count: 2, sample: true}")
    page.field("judge", {"name": "function", "function": f"{module}:score"}, indent=0)


def _score(page: Page, machine: Machine, training: Training) -> None:
    page.section("score")
    if machine.gpus and "quantize" not in training.recipe:
        page.field("backend", "vllm")
        page.field("dtype", "bfloat16", "as the policy is trained, so that both start alike")
        return
    quantized = "quantize" in training.recipe
    page.field("backend", "torch", "the only one that quantizes" if quantized else "on CPUs it is faster than vllm")
    page.field("dtype", "bfloat16" if machine.gpus else "float32", "as the policy is trained, so that both start alike")
    if quantized:
        page.field("quantize", training.recipe["quantize"].value, "as the policy's base")


def _evaluate(page: Page, training: Training) -> None:
    page.gap()
    page.note("What the policy writes beside its reference, and the KL it paid, is told after training with this line")
    merged = " and, with train.lora, merge: true in it" if "lora" in training.recipe else ""
    page.note(f"(vLLM draws the answers{merged}):")
    page.note("evaluate: {}")
