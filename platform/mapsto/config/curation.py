"""The recipe's `clean` and `index` sections."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ..core.section import Section


class CleanRule(Section):
    policy: Literal["off", "report", "quarantine", "repair"] | None = None
    """`report` counts and shows; `quarantine` keeps the row out of the new version, with its reason; `repair` mends it, for
    the rules that can. Default: the rule's own."""
    threshold: float | None = None
    """In the rule's own unit; default: the rule's own."""


RuleName = Literal[
    "exact_duplicate", "conflicting_labels", "leakage", "near_duplicate", "missing_label", "label_error", "too_small",
    "extreme_shape", "blank", "dark", "bright", "blurred", "low_information", "odd_mode", "boxes_outside", "boxes_without_area",
    "mask_ids", "class_imbalance",
]  # fmt: skip
REPAIRS = {"conflicting_labels", "leakage", "missing_label", "label_error", "boxes_outside"}


class IndexConfig(Section):
    """Vectors of a data set's images, to be searched for those that look alike."""

    features: Literal["colour", "hog", "lbp", "model"] = "colour"
    """`colour`: a histogram of hue, saturation and value; `hog`: oriented gradients; `lbp`: local binary patterns; `model`: what
    the last layer of a network looks at, this recipe's trained one's or that of `backbone`."""
    backbone: str | None = None
    """Of features `model`: a timm model's name; default: the model that this recipe trains."""
    pretrained: bool = True
    """Of `backbone`; false: random weights, always the same."""
    image_size: int = Field(224, ge=8, le=1024)
    """Of `backbone`: side of its square input, pixels; a trained model has its own."""
    metric: Literal["cosine"] = "cosine"

    @property
    def trained(self) -> bool:
        """Whether this recipe's own model gives the vectors."""
        return self.features == "model" and self.backbone is None

    @model_validator(mode="after")
    def _fits(self) -> IndexConfig:
        if self.backbone is not None and self.features != "model":
            raise ValueError(f"backbone is of features: model, not of {self.features}")
        return self


class VerifyConfig(IndexConfig):
    """What near duplicates are compared by once more."""

    features: Literal["colour", "hog", "lbp", "model"] = "model"
    model: str | None = None
    """Of features `model`: URI of a train artifact, in place of `backbone`. The recipe's own model is trained on what this stage
    leaves."""
    least: float = Field(0.9, ge=-1, le=1)
    """Cosine of the two images' features from which they count as near duplicates."""

    @model_validator(mode="after")
    def _one(self) -> VerifyConfig:
        if self.features == "model" and (self.backbone is None) == (self.model is None):
            raise ValueError(
                "features: model needs one of backbone (a timm model's name) and model (URI of a train artifact)"
            )
        if self.features != "model" and self.model is not None:
            raise ValueError(f"model is of features: model, not of {self.features}")
        return self


class EmbeddingsConfig(VerifyConfig):
    """Where near duplicates are looked for besides the hash: larger crops, turned images."""

    least: float = Field(0.95, ge=-1, le=1)
    """Cosine of two images' features from which their small pictures are compared."""
    nearest: int = Field(8, ge=1, le=256)
    """Images that are compared with each, at most."""


class CleanConfig(Section):
    """A new version of the data set without what is wrong with it; nothing is deleted."""

    rules: dict[RuleName, CleanRule] = Field({})
    """Rule → what to do with what it finds; `mapsto clean` says what each looks for."""
    folds: int = Field(0, ge=0, le=20)
    """Parts of the cross-validation that looks for wrong labels: the recipe's model is trained once for each, on the others.
    0: wrong labels are not looked for."""
    corrections: tuple[str, ...] = ()
    """Files that `mapsto data corrections` wrote of what people have changed, of this data set or an earlier version: their labels,
    boxes and masks are taken before any rule looks. Where two say differently, the later file counts."""
    add_classes: tuple[str, ...] = ()
    """Classes that corrections may bring, appended to the data set's own in this order, whose ids stay. Any other unknown one is refused."""
    verify: VerifyConfig | None = None
    """By default, near duplicates are those whose small pictures agree in shapes and colours; with this, of those that the hash has
    found only those whose features are alike, too."""

    embeddings: EmbeddingsConfig | None = None
    """Further candidates for near duplicates: each image's nearest by features, verified by their small pictures, turned and as parts
    of each other."""

    @field_validator("add_classes")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in names if not name.strip() or name != name.strip() or names.count(name) > 1]:
            raise ValueError(f"'{wrong[0]}': each is a name, once, without blanks around it")
        return names

    @model_validator(mode="after")
    def _brought(self) -> Self:
        if self.add_classes and not self.corrections:
            raise ValueError("add_classes are those that corrections bring; give `corrections`, or leave them out")
        return self

    @field_validator("rules")
    @classmethod
    def _mendable(cls, rules: dict[str, CleanRule]) -> dict[str, CleanRule]:
        for name, rule in rules.items():
            if rule.policy == "repair" and name not in REPAIRS:
                raise ValueError(
                    f"{name}: cannot be repaired; report or quarantine (repair: {', '.join(sorted(REPAIRS))})"
                )
        return rules

    @field_validator("folds")
    @classmethod
    def _two_or_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("1 part has no others to train on; 0 for none, or 2 or more")
        return folds
