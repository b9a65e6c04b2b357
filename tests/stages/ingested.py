"""An ingest by its stage alone, for tests of sources and of what becomes of them."""

from types import SimpleNamespace

from mapsto.config.schema import DataConfig
from mapsto.core.artifact import Artifact
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from mapsto.stages.ingest import Ingest


def local(work, numbers):
    """What the Ray tasks do, here."""
    for number in numbers:
        yield work.run(number)


def run(source, root, storage=None, resume=False, **config):
    """An ingest, and what it said."""
    stage, recipe = Ingest(), SimpleNamespace(name="trial", data={"train": DataConfig(source=str(source), **config)})
    artifact = Artifact(f"{root}/trial/ingest/0000", storage or Storage(retries=0))
    said: list[str] = []
    section = stage.section(recipe, {})
    artifact.begin({}, section, {})
    done = stage.run(Job(recipe, section, {}, artifact, artifact.storage, resume, {}, said.append))
    artifact.finish(section=section, parents={}, metrics=done.metrics, digest=done.digest)
    return Dataset.open(artifact), done, "\n".join(said)
