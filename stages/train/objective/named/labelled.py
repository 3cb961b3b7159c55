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


class ApoZeroUnpaired(_Labelled):
    name: Literal["apo_zero_unpaired"] = "apo_zero_unpaired"


class Bco(_Labelled):
    name: Literal["bco"] = "bco"
    coupled: ClassVar[bool] = True
    remembers: ClassVar[bool] = True


Labelled = Kto | ApoZeroUnpaired | Bco
