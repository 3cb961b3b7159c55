"""`train.loss`: one loss by its name, or a weighted sum of several."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stages.config import Config
from stages.train.objective.named.labelled import Labelled
from stages.train.objective.named.paired import Paired
from stages.train.objective.named.reference_free import ReferenceFree

Single = Paired | ReferenceFree | Labelled
ALIASES = {"dpo": "sigmoid"}  # the same loss with the same fields; only the latter name is kept, and hashed


def _by_name(given: Any) -> Any:
    """`ipo` is `{name: ipo}`; a loss without a name is DPO's; a list is a sum."""
    if isinstance(given, list):
        return {"name": "sum", "terms": given}
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        return given
    name = given.get("name", "sigmoid")
    return given | {"name": ALIASES.get(name, name) if isinstance(name, str) else name}


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

    def advice(self, desirable: int, undesirable: int) -> list[str]:
        return [said for term in self.terms for said in term.advice(desirable, undesirable)]

    @property
    def positive_margin(self) -> bool:
        return any(term.positive_margin for term in self.terms)

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
