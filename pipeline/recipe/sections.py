"""Recipe (what to do) and Cluster (where): the sections of their files. Only the recipe decides what is made."""

from pydantic import Field

from stages.config import Config, Count
from stages.score.config import ScoreConfig, ScoreResources
from stages.shard.config import ShardConfig, ShardResources
from stages.train.config import TrainConfig, TrainResources


class Wandb(Config):
    """Follow training in wandb; offline where no key is set. Watching does not change the artifact."""

    project: str
    entity: str | None = None


class Recipe(Config):
    name: str
    shard: ShardConfig
    score: ScoreConfig
    train: TrainConfig
    rounds: Count = 1  # each after the first has the policy of the one before for its start and its reference (TR-DPO)
    wandb: Wandb | None = None
    tensorboard: bool = False  # event files of training, beside the logs


class Cluster(Config):
    root: str = "runs"  # of all artifacts: a folder that every node sees under this path, or object storage ("s3://..")
    work: str = "runs"  # where they are made if `root` is object storage: again a folder that every node sees
    address: str | None = None  # of a running Ray cluster ("auto", "ray://..", "host:6379"); none: start one here
    dashboard: str | None = None  # where `raydpo submit` sends jobs ("http://host:8265")
    dashboard_seconds: float = Field(60, ge=0)  # for a cluster that is starting to be ready for jobs
    python: str = "python"  # the interpreter of a submitted job, as a shell on the cluster's head node finds it
    env_vars: dict[str, str] = {}  # for all Ray workers
    shard: ShardResources = ShardResources()
    score: ScoreResources = ScoreResources()
    train: TrainResources = TrainResources()
