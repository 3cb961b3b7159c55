"""Losses of labelled completions, with a reference."""

from typing import ClassVar, Literal

from stages.train.objective.named.objective import Beta, Objective, Weight


class _Labelled(Objective):
    family: ClassVar[Literal["paired", "labelled", "reference_free"]] = "labelled"
    beta: Beta = 0.1
    # Against imbalance: number times weight should be alike for both.
    desirable_weight: Weight = 1.0
    undesirable_weight: Weight = 1.0


class Kto(_Labelled):
    name: Literal["kto"] = "kto"
    coupled: ClassVar[bool] = True

    def advice(self, desirable: int, undesirable: int) -> list[str]:
        """Number times weight of desirable ones over that of undesirable ones should lie in [1, 4/3] (2402.01306)."""
        if not desirable or not undesirable:
            kind = "undesirable" if desirable else "desirable"
            return [f"train.loss kto learns from the difference of both kinds, and no completion is {kind}"]
        above, below = desirable * self.desirable_weight, undesirable * self.undesirable_weight
        if below <= above <= below * 4 / 3:
            return []
        least, most = below / desirable, below / desirable * 4 / 3
        return [
            f"train.loss kto: desirable completions times their weight are {desirable} x {self.desirable_weight:g}, "
            f"undesirable ones {undesirable} x {self.undesirable_weight:g}: {above / below:.3g} to 1, and its authors "
            f"advise 1 to 4/3. Set train.loss.desirable_weight from {least:.3g} to {most:.3g}, or "
            f"train.loss.undesirable_weight from {above / undesirable * 3 / 4:.3g} to {above / undesirable:.3g}"
        ]


class ApoZeroUnpaired(_Labelled):
    name: Literal["apo_zero_unpaired"] = "apo_zero_unpaired"


class Bco(_Labelled):
    name: Literal["bco"] = "bco"
    coupled: ClassVar[bool] = True
    remembers: ClassVar[bool] = True


Labelled = Kto | ApoZeroUnpaired | Bco
