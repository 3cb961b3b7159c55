"""Losses of pairs, with a reference."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.config import Fraction
from stages.train.objective.named.objective import Beta, Objective, Smoothing


class _Referenced(Objective):
    beta: Beta = 0.1
    # Length-desensitised (LD-DPO): what is past the length of the shorter completion counts so much; None: fully.
    ld_alpha: Fraction | None = None


class _PerPair(_Referenced):
    wpo: bool = False  # weigh a pair by how likely the policy is to write it (WPO)


class _OfDifference(_PerPair):
    """Losses of the difference of two rewards: other divergences than the reverse KL can regularise them (f-DPO)."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    divergence_alpha: float | None = None  # of the alpha divergence; 0 is the forward KL, towards 1 the reverse

    @model_validator(mode="after")
    def _alpha_belongs_to_alpha(self) -> "_OfDifference":
        if (self.divergence == "alpha") != (self.divergence_alpha is not None):
            raise ValueError("divergence: alpha and divergence_alpha go together")
        if self.divergence_alpha == 1:
            raise ValueError("divergence_alpha 1 is the reverse KL: leave both fields out")
        return self


class Sigmoid(_OfDifference):
    name: Literal["sigmoid"] = "sigmoid"
    label_smoothing: Smoothing = 0.0  # conservative DPO


class SigmoidNorm(_OfDifference):
    name: Literal["sigmoid_norm"] = "sigmoid_norm"
    beta: Beta = 5.0
    label_smoothing: Smoothing = 0.0


class Robust(_OfDifference):
    name: Literal["robust"] = "robust"
    label_smoothing: Smoothing = 0.1


class Hinge(_OfDifference):
    name: Literal["hinge"] = "hinge"


class Ipo(_OfDifference):
    name: Literal["ipo"] = "ipo"


class ExoPair(_OfDifference):
    name: Literal["exo_pair"] = "exo_pair"
    label_smoothing: float = Field(1e-3, gt=0, lt=0.5)


class Discopop(_OfDifference):
    name: Literal["discopop"] = "discopop"
    tau: float = Field(0.05, gt=0, lt=1)  # temperature of the blend


class NcaPair(_PerPair):
    name: Literal["nca_pair"] = "nca_pair"


class BcoPair(_PerPair):
    name: Literal["bco_pair"] = "bco_pair"


class SppoHard(_PerPair):
    name: Literal["sppo_hard"] = "sppo_hard"


class ApoZero(_PerPair):
    name: Literal["apo_zero"] = "apo_zero"


class ApoDown(_PerPair):
    name: Literal["apo_down"] = "apo_down"


class RDpo(_PerPair):
    name: Literal["r_dpo"] = "r_dpo"
    length_penalty: float = Field(0.01, ge=0)  # of preference that a token more explains


class Odpo(_PerPair):
    name: Literal["odpo"] = "odpo"
    margin_scale: float = Field(1.0, gt=0)  # nats a unit of what `margin_scale_of` makes of the triples' margin
    margin_scale_of: Literal["log", "identity"] = "log"  # log: pairs whose margin is not above 0 are set aside

    @property
    def positive_margin(self) -> bool:
        return self.margin_scale_of == "log"


class Dpop(_PerPair):
    name: Literal["dpop"] = "dpop"
    penalty: float = Field(50.0, ge=0)  # of what chosen has lost against the reference; lambda in the paper


class Rpo(_PerPair):
    name: Literal["rpo"] = "rpo"
    nll: float = Field(1.0, gt=0)  # weight of the negative log-likelihood of chosen


class BetaDpo(_PerPair):
    name: Literal["beta_dpo"] = "beta_dpo"
    coupled: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    adaptation: float = Field(0.6, ge=0)  # of beta to the step's gap, a nat
    momentum: float = Field(0.9, ge=0, lt=1)  # of the gap that it is compared with


class Aot(_Referenced):
    name: Literal["aot"] = "aot"
    coupled: ClassVar[bool] = True
    label_smoothing: Smoothing = 0.0


class AotUnpaired(_Referenced):
    name: Literal["aot_unpaired"] = "aot_unpaired"
    coupled: ClassVar[bool] = True
    label_smoothing: Smoothing = 0.0


Paired = (
    Sigmoid | SigmoidNorm | Robust | Hinge | Ipo | ExoPair | Discopop | NcaPair | BcoPair | SppoHard | ApoZero | ApoDown
    | RDpo | Odpo | Dpop | Rpo | BetaDpo | Aot | AotUnpaired
)  # fmt: skip
