"""A number for each image: an age, a weight, a share. Learnt in standard deviations from the training values' mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.regression import RegressionMetrics
from ..core.picture import banner
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, finite
from ..core.task import Context, ExportSpec, Field, Signature
from .whole import WholeConfig, WholeImage

if TYPE_CHECKING:
    import torch
    from torch import nn


class RegressConfig(WholeConfig):
    kind: Literal["regress"]
    loss: Literal["huber", "mse", "l1"] = "huber"
    """Of the error in standard deviations; huber: squared below `delta`, straight above (Huber, 1964)."""
    delta: float = Setting(1.0, gt=0)


class Regress(WholeImage):
    Config = RegressConfig
    about: ClassVar[str] = "a number per image"
    config: RegressConfig
    keeps: ClassVar[str] = "value"

    @property
    def outputs(self) -> int:
        return 1

    def check(self) -> None:
        info = self.info
        if "value" not in info.columns or not info.values:
            raise UserError(
                f"{info.uri}: no column value; regress needs a manifest with a number `value` for each image"
            )
        for split, rows in info.rows.items():
            known = int(info.values.get(split, {}).get("rows", 0))
            if known < rows:
                raise UserError(
                    f"{info.uri}: {rows - known} of {rows} rows of {split} have no value; leave them out of the manifest"
                )
        if not info.values["train"]["std"]:
            raise UserError(f"{info.uri}: all values of train are {info.values['train']['mean']:g}: nothing to learn")

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.scaled import Scaled

        values = self.info.values["train"]
        return Scaled(super().build(parents), values["mean"], values["std"])

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Logs `train_mae` in the values' own unit."""
        import torch
        import torch.nn.functional as F

        answer, truth = self.forward(model, batch)["value"].float(), batch["value"].float()
        error, valid = (answer - truth) / self.info.values["train"]["std"], batch["valid"].float()
        still = torch.zeros_like(error)
        each = {
            "huber": lambda: F.huber_loss(error, still, reduction="none", delta=self.config.delta),
            "mse": lambda: error.square(),
            "l1": lambda: error.abs(),
        }[self.config.loss]()
        return (each * valid).sum(), valid.sum(), {"train_mae": ((answer - truth).detach().abs() * valid).sum()}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"value": model(**self.inputs(batch))}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        return [
            {"value": float(value)}
            for value in finite(np.asarray(output["value"], np.float64), "regress: the model's answers")
        ]

    def metrics(self) -> RegressionMetrics:
        return RegressionMetrics()

    def signature(self) -> Signature:
        return Signature((Field("image", "image"),), (Field("value", "number"),))

    def export(self) -> ExportSpec:
        return ExportSpec(super().export().inputs, ("value",))

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return banner(sample["image"], f"{prediction['value']:.4g}")

    def truth(self, sample: Sample) -> str:
        return f"{sample['value']:.4g}"
