"""Losses of pairs that need no reference."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.train.objective.named.objective import Beta, Objective, Smoothing


class _ReferenceFree(Objective):
    family: ClassVar[Literal["paired", "labelled", "reference_free"]] = "reference_free"


class Sft(_ReferenceFree):
    name: Literal["sft"] = "sft"
    of_step_tokens: ClassVar[bool] = True
    beta: ClassVar[float] = 1.0  # of the rewards that are reported
    mean_over: Literal["step", "completion", "none"] = "step"  # the tokens of: the step, each completion; none: a sum


class Unlikelihood(_ReferenceFree):
    name: Literal["unlikelihood"] = "unlikelihood"
    of_step_tokens: ClassVar[bool] = True
    beta: ClassVar[float] = 1.0  # of the rewards that are reported
    alpha: float = Field(1.0, ge=0, le=1)  # weight of the rejected completion


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
    gamma_beta_ratio: float | None = Field(None, ge=0, exclude=True)  # instead: gamma is it times beta, and alone kept
    label_smoothing: Smoothing = 0.0

    @model_validator(mode="after")
    def _gamma_of_ratio(self) -> "SimPo":
        if self.gamma_beta_ratio is not None:
            if "gamma" in self.model_fields_set:
                raise ValueError("gamma is gamma_beta_ratio times beta: leave one of the two out")
            self.__dict__ |= {"gamma": self.gamma_beta_ratio * self.beta, "gamma_beta_ratio": None}
        return self


class CpoSimPo(SimPo):
    name: Literal["cpo_simpo"] = "cpo_simpo"  # type: ignore[assignment]
    of_step_tokens: ClassVar[bool] = True
    nll: float = Field(1.0, gt=0)


class AlphaPo(SimPo):
    name: Literal["alphapo"] = "alphapo"  # type: ignore[assignment]
    alpha: float = 0.25  # of the reward's shape; towards 0 it is SimPO's


ReferenceFree = Sft | Unlikelihood | Orpo | Cpo | CpoHinge | CpoIpo | SimPo | CpoSimPo | AlphaPo
