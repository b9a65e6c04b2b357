"""The recipe's schema: frozen pydantic models, a section per stage. The dotted path is the one address of a setting."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, create_model, field_validator

from ..core.registry import TASKS, task_class
from ..core.section import Fraction, Section
from ..core.storage import Storage
from ..core.task import TaskConfig
from .curation import CleanConfig, IndexConfig
from .training import TrainConfig
from .tuning import TuneConfig


class StorageConfig(Section):
    """How to reach the object store; the environment (AWS_ACCESS_KEY_ID, ...) is used where a field is absent."""

    endpoint_url: str | None = None
    region: str | None = None
    key: SecretStr | None = None
    secret: SecretStr | None = None
    token: SecretStr | None = None
    anonymous: bool = False
    retries: int = Field(6, ge=0, le=20)
    """Further tries after a transient error, with 0.5, 1, 2, 4, 8, 8, ... seconds between."""

    def open(self) -> Storage:
        def reveal(value: SecretStr | None) -> str | None:
            return value.get_secret_value() if value else None

        return Storage(
            self.endpoint_url,
            self.region,
            reveal(self.key),
            reveal(self.secret),
            reveal(self.token),
            self.anonymous,
            self.retries,
        )


SECRETS = {"key", "secret", "token"}
"""Of a `storage` section, the recipe's own or a data set's."""


class PackConfig(Section):
    """Images decoded, shrunk and stored anew as JPEG, whatever they were; boxes, segments, keypoints and masks follow."""

    longest_side: int = Field(400, ge=16, le=16384)
    """Pixels; smaller images keep their size."""
    quality: int = Field(90, ge=1, le=100)


class DataConfig(Section):
    """One data set: where its images are, in which layout, and how they are split."""

    source: str
    """URI of a folder, an archive (.tar, .tar.gz, .zip), a folder of archives, a manifest (.csv, .jsonl, .parquet), a
    video, a volume (.nii, .nii.gz) or an LMDB's data.mdb."""
    layout: Literal[
        "auto",
        "manifest",
        "imagenet",
        "coco",
        "voc",
        "yolo",
        "pairs",
        "raw",
        "lmdb",
        "nifti",
        "video",
        "faces",
        "webdataset",
        "archive",
        "folder",
    ] = "auto"
    splits: dict[Literal["val", "test"], Fraction] = Field({"val": 0.1, "test": 0.1})
    """Fractions for the splits that the source does not give itself, taken from its training rows, stratified by
    class, or by the several classes of a row's list of labels or boxes. A source that gives `test` keeps it whole."""
    group: Literal["identity", "label"] | None = None
    """Rows that share it never lie in two of the drawn splits (a person, in faces): whole groups are drawn instead."""
    seed: int = Field(0, ge=0)
    max_pixels: int = Field(100_000_000, gt=0)
    """Larger images go to quarantine undecoded; what is kept is read by every stage. Requests and files to predict may have 100 million."""
    min_side: int = Field(1, ge=1)
    limit: int | None = Field(None, ge=1)
    """At most so many files, drawn evenly from the whole listing: a quick try."""
    frames_per_s: float | None = Field(1.0, gt=0)
    """Of videos; null: every frame."""
    keep_metadata: bool = False
    """By default places, people, cameras and texts (Exif but the orientation, XMP, IPTC, comments) are taken out of JPEG,
    PNG and WebP without touching their pixels; the report counts files of other formats, which stay as they came."""
    pack: PackConfig | None = None
    """Shrink and store anew; null: the bytes of the source are kept."""
    storage: StorageConfig | None = None
    """How to reach this source, when it is not where the artifacts go; default: the recipe's `storage`."""


class EvaluateConfig(Section):
    split: Literal["train", "val", "test"] = "test"
    batch_size: int = Field(256, ge=1)
    """Most rows at once; fewer where they would take more than 256 MiB."""
    workers: int = Field(1, ge=1)
    """Ray actors that hold the model. A split of at most 256 rows needs none: it is measured in the driver's process."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    """Above 0 each actor runs a torch model on a GPU, however small the split; a compressed ONNX variant stays on the CPU, for
    which it was made."""
    worst: int = Field(24, ge=0)
    """Worst mistakes shown on the page."""
    resamples: int = Field(0, ge=0, le=10_000)
    """With 200 or more, 95 % intervals of all metrics by drawing the rows anew so many times; 0 for none."""

    @field_validator("resamples")
    @classmethod
    def _enough_or_none(cls, resamples: int) -> int:
        if 0 < resamples < 200:
            raise ValueError("too few for an interval's ends: at least 200, or 0 for no intervals")
        return resamples


class Quantize(Section):
    """Static int8 quantization by ONNX Runtime, calibrated on training images."""

    kind: Literal["quantize"]
    bits: Literal[8] = 8
    calibration: int = Field(512, ge=8)
    """Training rows that calibrate the activations' ranges."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = True


class Export(Section):
    """ONNX in float32."""

    kind: Literal["export"]
    opset: int = Field(18, ge=17)


class Target(Section):
    metric: Literal["latency_p50_ms", "size_mb", "throughput"] = "latency_p50_ms"
    batch_size: int = Field(1, ge=1)


class CompressConfig(Section):
    steps: list[Annotated[Export | Quantize, Field(discriminator="kind")]] = Field(
        [Export(kind="export"), Quantize(kind="quantize")]
    )
    max_drop: float = Field(0.5, ge=0)
    """Largest loss of the task's primary metric on `val` that a variant may cost, in points (hundredths)."""
    target: Target = Target()
    """What the chosen variant is best at, among those within `max_drop`."""
    repeats: int = Field(50, ge=5)
    """Timed calls per variant, interleaved."""
    threads: int = Field(1, ge=1)


class Replicas(Section):
    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)


class ServeConfig(Section):
    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]*$")
    """In the URL: /v1/models/{name}:predict; default: the recipe's name."""
    model: Literal["compress", "train"] = "compress"
    """Which stage's model is served."""
    replicas: Replicas = Replicas()
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    max_batch_size: int = Field(16, ge=1)
    batch_wait_ms: float = Field(2.0, ge=0)
    """How long a batch that is not full waits for more requests."""
    max_body_mb: float = Field(20.0, gt=0)
    max_queued: int = Field(256, ge=1)
    """Further requests get 503 with Retry-After."""
    timeout_s: float = Field(30.0, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    token_env: str | None = None
    """Environment variable, on the cluster, whose value clients must send as a bearer token."""


class RecipeBase(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    root: str
    """Artifacts go to root/name/stage/fingerprint."""
    storage: StorageConfig = StorageConfig()
    data: dict[str, DataConfig] = Field(min_length=1)
    clean: CleanConfig | None = None
    """With it, everything after works on the cleaned version of each data set."""
    index: IndexConfig | None = None
    """Of `mapsto index` and `mapsto search`; null: by colours."""
    task: TaskConfig
    train: TrainConfig = TrainConfig()
    tune: TuneConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    compress: CompressConfig | None = CompressConfig()
    """null: the float model is served."""
    serve: ServeConfig = ServeConfig()

    @property
    def trial_workers(self) -> int:
        """Workers of each trial of its sweep; 0 where it has none."""
        return (self.tune.workers or self.train.range[0]) if self.tune else 0

    def public(self) -> dict[str, Any]:
        """The resolved recipe without the storage section's secrets: what artifacts and reports may show."""
        return self.model_dump(mode="json", exclude={"storage": SECRETS, "data": {"__all__": {"storage": SECRETS}}})


Recipe = RecipeBase


@cache
def recipe_model() -> type[RecipeBase]:
    """The recipe with `task` as the union of every registered task's configuration, discriminated on `kind`."""
    configs = tuple(task_class(kind).Config for kind in TASKS)
    union: Any = reduce(or_, configs)
    on_kind = Field(discriminator="kind") if len(configs) > 1 else ...
    return create_model("Recipe", __base__=RecipeBase, __doc__="A mapsto recipe.", task=(union, on_kind))
