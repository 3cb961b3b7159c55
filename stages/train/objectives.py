"""The losses that a recipe can name: a class each, with its fields and with what it needs.

The function of a loss has its name, and stands in the module of `losses/` that its `family` names. No torch here.
"""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stages.config import Config, Fraction

Beta = Annotated[float, Field(gt=0)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]  # the probability that a label is wrong
Weight = Annotated[float, Field(gt=0)]


class Objective(Config):
    family: ClassVar[Literal["paired", "labelled", "reference_free"]] = "paired"
    coupled: ClassVar[bool] = False  # the loss of a pair depends on the other pairs of its step
    remembers: ClassVar[bool] = False  # and on those of earlier steps, by a few numbers
    of_means: ClassVar[bool] = False  # rewards are of log-probs a token, not of sums
    of_step_tokens: ClassVar[bool] = False  # it has a mean over all tokens of the step

    weight: Weight = 1.0  # in a sum of losses

    @property
    def terms(self) -> list[Any]:
        return [self]

    @property
    def of_the_step(self) -> bool:
        """The loss of a pair is another one in another step."""
        return self.coupled or self.of_step_tokens

    @property
    def labelled(self) -> bool:
        """It trains on labelled completions; else on pairs."""
        return self.family == "labelled"

    @property
    def reference(self) -> bool:
        """It needs the reference's log-probs."""
        return self.family != "reference_free"


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
    margin_scale: float = Field(1.0, gt=0)  # nats a unit of the triples' margin


class Rpo(_PerPair):
    name: Literal["rpo"] = "rpo"
    nll: float = Field(1.0, gt=0)  # weight of the negative log-likelihood of chosen


class BetaDpo(_PerPair):
    name: Literal["beta_dpo"] = "beta_dpo"
    coupled: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    adaptation: float = Field(0.6, ge=0)  # of beta to the batch's margin
    momentum: float = Field(0.9, ge=0, lt=1)  # of the margin that it is compared with


class Aot(_Referenced):
    name: Literal["aot"] = "aot"
    coupled: ClassVar[bool] = True
    label_smoothing: Smoothing = 0.0


class AotUnpaired(_Referenced):
    name: Literal["aot_unpaired"] = "aot_unpaired"
    coupled: ClassVar[bool] = True
    label_smoothing: Smoothing = 0.0


class _ReferenceFree(Objective):
    family: ClassVar[Literal["paired", "labelled", "reference_free"]] = "reference_free"


class Sft(_ReferenceFree):
    name: Literal["sft"] = "sft"
    of_step_tokens: ClassVar[bool] = True
    beta: ClassVar[float] = 1.0  # of the rewards that are reported


class Orpo(_ReferenceFree):
    name: Literal["orpo"] = "orpo"
    of_step_tokens: ClassVar[bool] = True
    of_means: ClassVar[bool] = True
    beta: Beta = 0.1  # lambda in the paper


class Cpo(_ReferenceFree):
    name: Literal["cpo"] = "cpo"
    of_step_tokens: ClassVar[bool] = True
    beta: Beta = 0.1
    label_smoothing: Smoothing = 0.0
    nll: float = Field(1.0, ge=0)


class CpoHinge(_ReferenceFree):
    name: Literal["cpo_hinge"] = "cpo_hinge"
    of_step_tokens: ClassVar[bool] = True
    beta: Beta = 0.1
    nll: float = Field(1.0, ge=0)


class CpoIpo(_ReferenceFree):
    name: Literal["cpo_ipo"] = "cpo_ipo"
    of_step_tokens: ClassVar[bool] = True
    of_means: ClassVar[bool] = True
    beta: Beta = 0.1
    nll: float = Field(1.0, ge=0)


class SimPo(_ReferenceFree):
    name: Literal["simpo"] = "simpo"
    of_means: ClassVar[bool] = True
    beta: Beta = 2.0
    gamma: float = Field(1.0, ge=0)  # the margin wanted
    label_smoothing: Smoothing = 0.0


class CpoSimPo(SimPo):
    name: Literal["cpo_simpo"] = "cpo_simpo"  # type: ignore[assignment]
    of_step_tokens: ClassVar[bool] = True
    nll: float = Field(1.0, gt=0)


class AlphaPo(SimPo):
    name: Literal["alphapo"] = "alphapo"  # type: ignore[assignment]
    alpha: float = 0.25  # of the reward's shape; towards 0 it is SimPO's


class _Labelled(Objective):
    family: ClassVar[Literal["paired", "labelled", "reference_free"]] = "labelled"
    beta: Beta = 0.1
    # Against imbalance: number times weight should be alike for both.
    desirable_weight: Weight = 1.0
    undesirable_weight: Weight = 1.0


class Kto(_Labelled):
    name: Literal["kto"] = "kto"
    coupled: ClassVar[bool] = True


class ApoZeroUnpaired(_Labelled):
    name: Literal["apo_zero_unpaired"] = "apo_zero_unpaired"


class Bco(_Labelled):
    name: Literal["bco"] = "bco"
    coupled: ClassVar[bool] = True
    remembers: ClassVar[bool] = True


Paired = (
    Sigmoid | SigmoidNorm | Robust | Hinge | Ipo | ExoPair | Discopop | NcaPair | BcoPair | SppoHard | ApoZero | ApoDown
    | RDpo | Odpo | Rpo | BetaDpo | Aot | AotUnpaired
)  # fmt: skip
ReferenceFree = Sft | Orpo | Cpo | CpoHinge | CpoIpo | SimPo | CpoSimPo | AlphaPo
Labelled = Kto | ApoZeroUnpaired | Bco
Single = Paired | ReferenceFree | Labelled


def _by_name(given: Any) -> Any:
    """`ipo` is `{name: ipo}`; a loss without a name is DPO's; a list is a sum."""
    if isinstance(given, str):
        return {"name": given}
    if isinstance(given, list):
        return {"name": "sum", "terms": given}
    return {"name": "sigmoid"} | given if isinstance(given, dict) else given


class Sum(Config):
    """The sum of several losses, each times its weight (MPO: Wang et al., 2024)."""

    name: Literal["sum"] = "sum"
    terms: list[Annotated[Single, Field(discriminator="name"), BeforeValidator(_by_name)]] = Field(min_length=2)

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Sum":
        if len({term.labelled for term in self.terms}) > 1:
            names = ", ".join(term.name for term in self.terms)
            raise ValueError(f"a sum trains on pairs or on labelled completions, not on both: {names}")
        return self

    @property
    def beta(self) -> float:
        """Of the rewards that are reported."""
        return self.terms[0].beta

    @property
    def of_means(self) -> bool:
        return self.terms[0].of_means

    @property
    def coupled(self) -> bool:
        return any(term.coupled for term in self.terms)

    @property
    def of_the_step(self) -> bool:
        return any(term.of_the_step for term in self.terms)

    @property
    def remembers(self) -> bool:
        return any(term.remembers for term in self.terms)

    @property
    def labelled(self) -> bool:
        return self.terms[0].labelled

    @property
    def reference(self) -> bool:
        return any(term.reference for term in self.terms)


def _weighed_in_sums_alone(loss: Any) -> Any:
    if getattr(loss, "weight", 1.0) != 1.0:
        raise ValueError(f"weight is of a loss in a sum, and {loss.name} stands alone: leave it out")
    return loss


BY_NAME: dict[str, type[Config]] = {kind.model_fields["name"].default: kind for kind in (*get_args(Single), Sum)}
Loss = Annotated[
    Single | Sum, Field(discriminator="name"), BeforeValidator(_by_name), AfterValidator(_weighed_in_sums_alone)
]
