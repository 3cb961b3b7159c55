"""Every loss in a pipeline: what it is trained on, that it trains, however its pairs are spread."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import Project, make_project
from ranks import metrics_of, train_on

from pipeline.plan import Step, advice
from pipeline.view.tables import print_plan
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, MissingArtifact, RecipeError
from stages.progress import Silent
from stages.train.config import TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.objective.named import labelled, paired, reference_free
from stages.train.objective.named.loss import BY_NAME, Loss, Single, Sum
from stages.train.run import train
from stages.train.trainer import Trainer

STEPS = 2
ALL = [kind() for kind in get_args(Single)]
MPO = Sum(terms=[paired.Sigmoid(weight=0.8), paired.Aot(weight=0.2), reference_free.Sft()])
Made = dict[bool, dict[str, Step]]
LABELLED = ("shard.rows=labelled", "train.loss.name=kto", "train.loss.desirable_weight=1.5")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ray_cluster: str) -> Project:  # noqa: ARG001
    """Triples with a margin; sharded and scored as pairs and as labelled completions."""
    project = make_project(tmp_path_factory.mktemp("losses"), tiny_model)
    source = project.folder / "triples.jsonl"
    triples = [json.loads(line) for line in source.read_text().splitlines()]
    source.write_text("".join(json.dumps(row | {"better": i % 3}) + "\n" for i, row in enumerate(triples)))
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["shard"]["columns"] = {"margin": "better"}
    recipe["train"] |= {"max_steps": STEPS, "lr": 1e-5, "loss": "sigmoid"}
    project.recipe.write_text(yaml.safe_dump(recipe))
    for overrides in ((), LABELLED):
        project.run(*overrides, stages=["shard", "score"])
    return project


@pytest.fixture(scope="module")
def made(project: Project) -> Made:
    """The project's steps: for losses of labelled completions, or for others."""
    return {True: project.plan(*LABELLED), False: project.plan()}


def job(made: Made, loss: Loss, out: Path, **resources: int) -> Job:
    steps = made[loss.labelled]
    config: Any = steps["train"].config.model_copy(update={"loss": loss})
    logprobs = ReferenceLogprobs(steps["score"].folder) if loss.reference else None
    out.mkdir(parents=True, exist_ok=True)
    return Job(config, TrainResources(**resources), PreferencePairs(steps["shard"].folder), logprobs, out, 128)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("loss", [*ALL, MPO, paired.Sigmoid(wpo=True, ld_alpha=0.5)], ids=lambda loss: loss.name)
def test_each_loss_trains_however_its_pairs_are_spread(loss: Any, made: Made, tmp_path: Path) -> None:
    """One or two pairs a micro-batch give the same step, and after it the loss of its pairs is lower."""
    trainers = [Trainer(job(made, loss, tmp_path)), Trainer(job(made, loss, tmp_path, max_tokens_per_microbatch=90))]
    first, spread = (trainer.step(1, STEPS) for trainer in trainers)
    assert first.keys() == spread.keys()
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        assert spread.get(name, 0) == pytest.approx(first.get(name, 0), rel=1e-4, abs=1e-5), name
    assert ("implicit_kl" in first) == ("check/ref_drift" in first) == loss.reference
    assert {key.partition("/")[0] for key in trainers[0].loss_state} == ({loss.name} if loss.remembers else set())
    trainers[0].config = trainers[0].config.model_copy(update={"starts_at_reference": False})
    assert trainers[0].step(1, STEPS)["loss"] < first["loss"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["aot", "bco"])
def test_evaluation_is_in_batches_of_a_step(name: str, made: Made, tmp_path: Path) -> None:
    """However many held-out pairs fit into a forward pass: a coupled loss is that of global_batch pairs."""
    loss = BY_NAME[name]()
    by_size = [Trainer(job(made, loss, tmp_path, max_tokens_per_microbatch=size)).evaluate() for size in (20, 9999)]
    assert by_size[0] == pytest.approx(by_size[1], rel=1e-5, abs=1e-5)


@pytest.mark.usefixtures("alone")
def test_labelled_completions_on_two_workers(made: Made, tmp_path: Path) -> None:
    """KTO's KL term is over all pairs of the step, whoever computes them."""
    kto = labelled.Kto(desirable_weight=1.5)
    train_on(job(made, kto, tmp_path / "two", workers=2), world=2)
    two = metrics_of(tmp_path / "two")
    assert two[1]["check/ref_drift"] < 1e-4
    one = Trainer(job(made, kto, tmp_path / "one"))
    for step in range(1, STEPS + 1):
        metrics = one.step(step, STEPS)
        for name in ("loss", "grad_norm", "implicit_kl", "rewards/margins"):
            assert two[step].get(name) == pytest.approx(metrics.get(name), rel=1e-4, abs=2e-5), name


def test_without_a_reference_score_is_not_run(project: Project, tmp_path: Path) -> None:
    elsewhere = f"cluster.root={tmp_path}"
    plan = project.plan("train.loss=orpo", elsewhere)
    assert {name: step.state for name, step in plan.items()} == {
        "shard": "miss",
        "score": "not needed",
        "train": "miss",
    }
    assert plan["score"].why == "train reads no ReferenceLogprobs with this recipe"
    assert list(plan["train"].payload["inputs"]) == ["pairs"]
    with pytest.raises(RecipeError, match=r"score is not needed: train reads no ReferenceLogprobs"):
        project.run("train.loss=orpo", elsewhere, stages=["score"])
    done = project.run("train.loss=orpo")
    assert list(done) == ["shard", "train"]
    metrics = PolicyCheckpoint(done["train"].step.folder).metrics
    assert "check/ref_drift" not in metrics[1]
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"]


def test_losses_share_shard_and_score(project: Project) -> None:
    """Every pair of losses that trains on the same rows finds both made, and differs in train alone."""
    planned = {}
    for loss in ALL:
        rows = "labelled" if loss.labelled else "pairs"
        planned[loss.name] = project.plan(f"train.loss={loss.name}", f"shard.rows={rows}")
        states = {name: step.state for name, step in planned[loss.name].items() if name != "train"}
        assert states == {"shard": "hit", "score": "hit" if loss.reference else "not needed"}, loss.name
    for one, other in combinations(ALL, 2):
        if one.labelled == other.labelled:
            for stage in ("shard", "score"):
                assert planned[one.name][stage].fingerprint == planned[other.name][stage].fingerprint
        assert planned[one.name]["train"].fingerprint != planned[other.name]["train"].fingerprint
    beta = project.plan("train.loss.beta=0.5")
    assert (beta["shard"].state, beta["score"].state) == ("hit", "hit")
    assert "train.loss.beta: None -> 0.5" not in beta["train"].why


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.loss=kto"], r"train\.loss kto trains on labelled completions, and shard\.rows is pairs"),
        (["shard.rows=labelled"], r"train\.loss sigmoid trains on pairs, and shard\.rows is labelled"),
        (["train.loss=odpo", "shard.columns.margin=null"], r"train\.loss odpo needs .* shard\.columns\.margin"),
        (["train.loss=ipoo"], r"train\.loss: there is no loss ipoo; did you mean ipo\?"),
        (["train.loss=ipo", "train.loss.label_smoothing=0.1"], r"train\.loss\.label_smoothing: no such key; known: "),
        (["train.loss.divergence=alpha"], r"train\.loss: divergence: alpha and divergence_alpha go together"),
        (["train.loss=[sigmoid]"], r"train\.loss: List should have at least 2 items"),
        (["train.loss=[sigmoid, kto]"], r"train\.loss: a sum trains on pairs or on labelled .* sigmoid, kto"),
        (
            ["train.loss=[sigmoid, {name: sft, wait: 2}]"],
            r"train\.loss\.1\.wait: no such key; did you mean weight\?",
        ),
        (["train.loss=orpo", "train.loss.ld_alpha=0.5"], r"train\.loss\.ld_alpha: no such key"),
    ],
    ids=str,
)
def test_an_ill_matched_loss_fails_in_the_plan(project: Project, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        project.plan(*overrides)


def test_train_by_itself_refuses_other_rows_too(made: Made, tmp_path: Path) -> None:
    of_pairs, of_labels = (job(made, loss, tmp_path) for loss in (paired.Sigmoid(), labelled.Kto()))
    given: dict[str, Any] = {"out": tmp_path / "out", "resources": TrainResources()}
    config = TrainConfig(policy=of_pairs.config.policy, loss=labelled.Kto())
    with pytest.raises(ContractError, match=r"kto needs labelled completions, and PreferencePairs \w+ holds pairs"):
        train(config, pairs=of_pairs.pairs, logprobs=of_pairs.logprobs, **given)
    with pytest.raises(MissingArtifact, match=r"train\.loss kto needs the reference's log-probs"):
        train(config, pairs=of_labels.pairs, **given)
    assert not (tmp_path / "out").exists()


def test_the_margin_is_kept(made: Made) -> None:
    pairs = PreferencePairs(made[False]["shard"].folder)
    margins = [value for part in pairs.parts for value in pairs.read(part)["margin"].to_pylist()]
    assert sorted(set(margins)) == [0.0, 1.0, 2.0]


class Listening(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)


@pytest.mark.usefixtures("ray_cluster", "alone")
def test_odpo_leaves_out_what_has_no_logarithm(made: Made, tmp_path: Path) -> None:
    steps = made[False]
    pairs, logprobs = PreferencePairs(steps["shard"].folder), ReferenceLogprobs(steps["score"].folder)
    rows = [row for part in pairs.parts for row in pairs.read(part).to_pylist() if row["split"] == "train"]
    without = sum(row["margin"] == 0 for row in rows)
    progress = Listening()
    config = steps["train"].config.model_copy(update={"loss": paired.Odpo()})
    facts = train(config, pairs=pairs, logprobs=logprobs, out=tmp_path, resources=TrainResources(), progress=progress)
    assert 0 < facts["without_margin"] == without < len(rows)
    assert facts["pairs"] == len(rows) - without
    assert progress.told == facts["notices"]
    assert progress.told[0].startswith(f"{without} pairs have no margin above 0")
    assert len(Trainer(job(made, paired.Odpo(margin_scale_of="identity"), tmp_path)).pairs) == len(rows)


def test_odpo_is_refused_where_no_pair_has_a_margin(inputs: tuple, tiny_model: Path, tmp_path: Path) -> None:
    pairs, logprobs = inputs
    config = TrainConfig(policy=str(tiny_model), loss=paired.Odpo())
    message = r"odpo takes the logarithm of margins, and none of the \d+ pairs .*margin_scale_of: identity"
    with pytest.raises(ContractError, match=message):
        train(config, pairs=pairs, logprobs=logprobs, out=tmp_path / "out", resources=TrainResources())
    assert not (tmp_path / "out").exists()


def test_the_plan_warns_where_kinds_are_out_of_balance(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """As many of both, and the desirable ones weigh 1.5."""
    print_plan(list(project.plan(*LABELLED).values()), [], as_json=False)
    assert ": 1.5 to 1, and its authors advise 1 to 4/3. Set train.loss.desirable_weight" in capsys.readouterr().out
    for balanced in (["train.loss.desirable_weight=1.2"], ["train.loss.name=apo_zero_unpaired"], ["shard.num_parts=2"]):
        assert advice(list(project.plan(*LABELLED, *balanced).values())) == []
    assert advice(list(project.plan().values())) == []
