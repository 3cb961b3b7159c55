"""Recipe (what to do) and Cluster (where): the sections of their files. Only the recipe decides what is made."""

from pydantic import Field, model_validator

from stages.config import Config, Count, Labels
from stages.evaluate.config import EvaluateConfig, EvaluateResources
from stages.judge.config import JudgeConfig, JudgeResources
from stages.sample.config import SampleConfig, SampleResources
from stages.score.config import ScoreConfig, ScoreResources
from stages.shard.config import ShardConfig, ShardResources
from stages.train.config import TrainConfig, TrainResources


class Wandb(Config):
    """Follow training in wandb; offline where no key is set. Watching does not change the artifact."""

    project: str
    entity: str | None = None


class Mlflow(Config):
    """Follow training in MLflow. Watching does not change the artifact."""

    uri: str  # of a server, or of a store: sqlite:///mlflow.db
    experiment: str = "raydpo"


class Rounds(Config):
    """Each after the first has the policy of the one before for its start and its reference (TR-DPO)."""

    count: Count = 1
    sample: bool = False  # and for what writes its completions: on-policy
    replay: int = Field(0, ge=0)  # pairs of so many earlier rounds are trained on as well

    @model_validator(mode="after")
    def _replays_samples(self) -> "Rounds":
        if self.replay and not self.sample:
            raise ValueError("replay keeps pairs of earlier rounds, and without sample: true all rounds have the same")
        return self


class Recipe(Config):
    name: str
    sample: SampleConfig | None = None
    judge: JudgeConfig | None = None
    # Only a recipe that evaluates a policy which it names is without one of these three.
    shard: ShardConfig | None = None
    score: ScoreConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig | None = None
    rounds: Count | Rounds = 1  # a number, or {count: .., sample: true}
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None
    tensorboard: bool = False  # event files of training, beside the logs

    @property
    def all_rounds(self) -> Rounds:
        return self.rounds if isinstance(self.rounds, Rounds) else Rounds(count=self.rounds)


class Nodes(Config):
    """Nodes of one kind that a cluster has, or can grow to."""

    count: Count = 1
    cpus: float = Field(gt=0)
    gpus: float = Field(0, ge=0)
    labels: Labels = {}


class Cluster(Config):
    root: str = "runs"  # of all artifacts: a folder that every node sees under this path, or object storage ("s3://..")
    work: str = "runs"  # where they are made if `root` is object storage: again a folder that every node sees
    address: str | None = None  # of a running Ray cluster ("auto", "ray://..", "host:6379"); none: start one here
    dashboard: str | None = None  # where `raydpo submit` sends jobs ("http://host:8265")
    dashboard_seconds: float = Field(60, ge=0)  # for a cluster that is starting to be ready for jobs
    python: str = "python"  # the interpreter of a submitted job, as a shell on the cluster's head node finds it
    env_vars: dict[str, str] = {}  # for all Ray workers
    # Peak of a GPU in the precision of training, 1e12 FLOP/s, of which `plan` reckons hours where no earlier run tells.
    device_tflops: float | None = Field(None, gt=0)
    nodes: tuple[Nodes, ...] = ()  # what `plan` looks for room on; none: on this machine, if Ray is started here
    sample: SampleResources = SampleResources()
    judge: JudgeResources = JudgeResources()
    shard: ShardResources = ShardResources()
    score: ScoreResources = ScoreResources()
    train: TrainResources = TrainResources()
    evaluate: EvaluateResources = EvaluateResources()
