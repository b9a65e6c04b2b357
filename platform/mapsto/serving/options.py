"""What `mapsto.serving.app:build` takes: the `args` of a Serve configuration, validated."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import UserError
from ..core.storage import Storage

RETRY_AFTER_S = 1


class StorageArgs(BaseModel):
    """Where the artifact's store is. Its keys come from the replicas' environment, never from here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    retries: int = 6

    def open(self) -> Storage:
        return Storage(self.endpoint_url, self.region, anonymous=self.anonymous, retries=self.retries)


class ReplicaArgs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)


class Options(BaseModel):
    """One served model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str
    """URI of a train or compress artifact."""
    answers: dict[str, Any] = {}
    """How it answers, in place of what its `task.json` says: `{min_score: 0.5}`."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """In the URL: /v1/models/{name}:predict."""
    storage: StorageArgs = StorageArgs()
    max_batch_size: int = Field(16, ge=1)
    batch_wait_ms: float = Field(2.0, ge=0)
    max_body_mb: float = Field(20.0, gt=0)
    max_queued: int = Field(256, ge=1)
    timeout_s: float = Field(30.0, gt=0)
    replicas: ReplicaArgs = ReplicaArgs()
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    token_env: str | None = None

    @property
    def max_ongoing(self) -> int:
        """Requests a replica works on at once: more than a batch, or batches could never fill; two being decoded or
        answered for every one in the model, and one more batch to spare."""
        return 4 * self.max_batch_size

    @staticmethod
    def of(args: dict[str, Any]) -> Options:
        """UserError with every problem in one line."""
        try:
            return Options(**args)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
            raise UserError(f"serving args: {problems}") from error
