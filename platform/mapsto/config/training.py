"""The recipe's `train` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..core.section import Pattern, Section
from .optimizing import FixedSchedule, OptimizerConfig, Schedule

Epoch = Annotated[int, Field(ge=1)]
FILES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")


class InitConfig(Section):
    """What training starts from, and which part of it stays as it is."""

    weights: str | None = None
    """URI of a mapsto train artifact, of a safetensors file, or of a PyTorch state dict (.pt, .pth, .th, .bin, .ckpt). A
    file's content is taken to belong to its name: new weights want a new name. Default: the model's own start."""
    strict: bool = False
    """Refuse weights that lack a parameter, have one too many, or one of another shape; otherwise they are told, and kept
    in the artifact's `init.json`."""
    freeze: tuple[Pattern, ...] = ()
    """Regular expressions, searched for in a parameter's name (`^net\\.(conv1|bn1|layer1)`): what they match is not trained. A
    batch norm whose parameters are all frozen keeps its statistics, too."""
    unfreeze_at: Epoch | tuple[Epoch, ...] | None = None
    """Epochs after which what `freeze` matches is trained with the rest; or one for each of its patterns, to thaw layer by layer
    (Howard and Ruder, Universal Language Model Fine-tuning, arXiv 1801.06146): what several match thaws with the last of them."""

    @property
    def thaws(self) -> tuple[int, ...]:
        """For each pattern of `freeze` the epochs after which it thaws; empty where none does."""
        given = self.unfreeze_at
        return given if isinstance(given, tuple) else () if given is None else (given,) * len(self.freeze)

    @property
    def artifact(self) -> str | None:
        """The URI where `weights` names a mapsto artifact, not a file: it has no ending of a file of weights."""
        return None if self.weights is None or self.weights.lower().endswith(FILES) else self.weights

    @model_validator(mode="after")
    def _something_frozen(self) -> InitConfig:
        if self.unfreeze_at is not None and not self.freeze:
            raise ValueError("unfreeze_at needs freeze: nothing is frozen")
        if isinstance(self.unfreeze_at, tuple) and len(self.unfreeze_at) != len(self.freeze):
            raise ValueError(
                f"unfreeze_at has {len(self.unfreeze_at)} epochs for the {len(self.freeze)} patterns of freeze: one for each, "
                "or one for all"
            )
        return self


class SwaConfig(Section):
    """Stochastic weight averaging: the equal mean of the weights after each of the last epochs, with batch norm's statistics
    measured anew (Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, arXiv 1803.05407)."""

    start: float = Field(0.75, ge=0, lt=1)
    """Share of the run after which the mean begins."""
    lr: float | None = Field(None, gt=0)
    """Constant learning rate from then on, as a share of `lr` (the paper's is high); default: the schedule goes on."""
    rows: int = Field(2048, ge=2)
    """Rows per worker, the epoch's last, on which batch norm's statistics are measured."""

    def active(self, epoch: int, epochs: int) -> bool:
        """Whether the weights after `epoch` (from 0) of `epochs` belong to the mean; those of the last one always do."""
        return epoch + 1 > self.start * epochs


class EarlyStopConfig(Section):
    """End the run when the task's primary metric on `val` no longer improves; the best evaluation's weights are kept."""

    patience: int = Field(5, ge=0)
    """Evaluations without improvement that are endured."""
    min_delta: float = Field(0.0, ge=0)
    """Smallest change that counts as an improvement."""


class CacheConfig(Section):
    """What each node keeps of the images that it has read, on its own disk (MAPSTO_CACHE, at most MAPSTO_CACHE_GB): made
    once from the stored image, and used from the first epoch on, so that every epoch sees the same pixels."""

    kind: Literal["packed", "decoded"]
    """`packed`: images above `longest_side` shrunk, as JPEG. `decoded`: pixels, which no epoch decodes again; they take
    some eight times the room of JPEG."""
    longest_side: int | None = Field(400, ge=16, le=16384)
    """Pixels; smaller images keep their size. null, of `decoded`: every image does."""
    quality: int = Field(90, ge=1, le=100)
    """Of `packed`."""

    @model_validator(mode="after")
    def _shrinks(self) -> CacheConfig:
        if self.kind == "packed" and self.longest_side is None:
            raise ValueError("packed needs longest_side: without it nothing is packed")
        return self


class MLflowTracker(Section):
    """Each run in MLflow, too; needs the extra `mlflow`."""

    kind: Literal["mlflow"]
    uri: str | None = None
    """Of a tracking server (`http://...`), a database (`sqlite:///...`) or a folder; default: a folder in the artifact."""
    experiment: str | None = None
    """Default: the recipe's name."""


class WandbTracker(Section):
    """Each run as an offline run of Weights & Biases in the artifact, for `wandb sync`; needs the extra `wandb`."""

    kind: Literal["wandb"]
    project: str | None = None
    """Default: the recipe's name."""


class TrainConfig(Section):
    epochs: int = Field(10, ge=0)
    """0, with `init`: keep the weights as they are, to evaluate, compress and serve them."""
    batch_size: int = Field(256, ge=1)
    """Global: rows per optimizer step over all workers. In `full_batch` descent, rows per forward pass."""
    descent: Literal["mini_batch", "stochastic", "full_batch"] = "mini_batch"
    """`stochastic`: one row a step. `full_batch`: one step an epoch, over every row."""
    accumulate: int = Field(1, ge=1)
    """Forward passes per worker that share one optimizer step; the batch is split among them."""
    cache: CacheConfig | None = None
    """null: nodes keep the stored bytes."""
    drop_last: bool = False
    """Drop an epoch's last, partial batch; otherwise it is used, and weighs what it holds."""
    workers: int = Field(1, ge=1)
    most_workers: int | None = Field(None, ge=1)
    """Where the cluster grows and shrinks: as many as it has room for, from `workers` to so many, looked at again every
    minute. With every change they start anew from the newest checkpoint; the global batches stay the same."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    threads: int | None = Field(None, ge=1)
    """torch threads of a worker; default: cpus_per_worker, at least 1."""
    init: InitConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = FixedSchedule()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16: mixed, weights stay fp32; fp16 scales the loss (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740).
    A CPU without instructions for bf16 trains in fp32 instead, and says so."""
    channels_last: bool = True
    compile: bool = False
    """Compile the model with torch.compile: slow to start, quicker steps after."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time. Of timm models that have it."""
    sync_norm: bool = False
    """Batch norm over all workers' rows (torch's SyncBatchNorm): GPUs only, for small batches per worker."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of the averaged weights, which are then the ones evaluated and kept."""
    swa: SwaConfig | None = None
    """In place of ema: the equal mean over the last epochs."""
    early_stop: EarlyStopConfig | None = None
    deterministic: bool = False
    """Only algorithms that give the same bits every time, on the same number of workers; slower on GPUs."""
    seed: int = Field(0, ge=0)
    evaluate_every: int = Field(1, ge=1)
    """Epochs between evaluations on `val`; the last one is always evaluated."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between checkpoints; the last one is always kept."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Optimizer steps between checkpoints within an epoch, for epochs that take hours; null: none."""
    keep: int = Field(2, ge=1)
    """Checkpoints to keep besides the newest: the best by the task's primary metric."""
    trackers: tuple[Annotated[MLflowTracker | WandbTracker, Field(discriminator="kind")], ...] = ()
    """Where a run is booked besides the artifact's own history and TensorBoard file; one of each kind."""
    max_failures: int = Field(2, ge=0)
    """Lost workers that a run survives by resuming from its last checkpoint."""

    @property
    def range(self) -> tuple[int, int]:
        """The least and the most workers."""
        return self.workers, self.most_workers or self.workers

    @property
    def measured(self) -> bool:
        """Whether the primary metric has a part in the training: it chooses the weights, or steers the learning rate."""
        return self.early_stop is not None or self.schedule.kind == "plateau"

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        least, most = self.range
        if least > most:
            raise ValueError(f"most_workers {most} is less than workers {least}")
        parts = most * self.accumulate
        if self.descent == "mini_batch" and self.batch_size < parts:
            raise ValueError(f"batch_size {self.batch_size} is smaller than workers x accumulate = {parts}")
        if self.epochs == 0 and self.init is None:
            raise ValueError("epochs 0 trains nothing; say in init where the weights come from")
        if len({each.kind for each in self.trackers}) < len(self.trackers):
            raise ValueError("trackers: one of each kind")
        if self.ema is not None and self.swa is not None:
            raise ValueError("ema and swa both average the weights; keep one")
        last = max(self.init.thaws or (0,)) if self.init else 0
        if last >= self.epochs > 0:
            raise ValueError(f"init.unfreeze_at {last} never comes in {self.epochs} epochs; leave it out, or lower it")
        return self
