"""The Task seam: what a task says, and nothing of how it is run.

A task is one file: its configuration (a frozen pydantic model whose `kind` names it) beside its class. It imports no
torch at module level: decoding workers and the command line import it too, and must stay small and quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from .batches import stack
from .errors import UserError
from .preprocess import Preprocess
from .sample import Arrays, Batch, DatasetInfo, Geometry, Prediction, Sample, Split
from .section import Section
from .windows import Windows, looks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .artifact import Artifact
    from .page import Page


class TaskConfig(Section):
    """The recipe's `task` section; every task's own configuration extends it and narrows `kind` to a literal."""

    kind: str

    answering: ClassVar[tuple[str, ...]] = ()
    """Settings that only say how a trained model answers, and what is measured of it beside the primary metric: its weights
    depend on none of them, so they are no part of a training's address, but of what is made with the model."""
    measuring: ClassVar[tuple[str, ...]] = ()
    """The same, but the primary metric depends on them: where early stopping chooses weights by it, they count."""

    def answers(self) -> dict[str, Any]:
        """The values of both, JSON-able."""
        return self.model_dump(mode="json", include={*self.answering, *self.measuring})

    def trained(self, *, chosen: bool) -> dict[str, Any]:
        """What a training's address covers, JSON-able. `chosen`: the primary metric chooses the weights, or
        steers their training."""
        return self.model_dump(mode="json", exclude={*self.answering, *(() if chosen else self.measuring)})

    def artifacts(self) -> Mapping[str, str]:
        """Dotted path below `task` → URI of further artifacts that training needs (`distill.teacher`). At training, and
        only then, `build` finds them in `parents`, under `task.` and that path."""
        return {}

    def unexported(self) -> str:
        """Why no model of these settings can be exported, which the settings alone tell; empty where one may be."""
        return ""


class Transform(Protocol):
    """(samples, generator) → sample: pure, picklable, numpy only. The first sample is the row itself, the others its
    partners (mosaic, mixing); `image` arrives as encoded bytes and leaves as H×W×3 uint8 of one fixed size."""

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample: ...


Sampling = Literal["shuffled", "sequential", "balanced", "weighted", "identities", "poisson"]
"""How an epoch draws a split's rows. `shuffled`, `sequential`: each once. `balanced`, `weighted`: as many draws, of which
every class, or every row by its weight, has its expected number, to within one draw for a row; in shuffled order. Of rows that hold
several classes `balanced` weighs each by its rarest (repeat factors; Gupta et al., arXiv 1908.03195). `identities`: each once,
up to `together` rows of one after each other (P×K; Hermans et al., In Defense of the Triplet Loss, arXiv 1703.07737). `poisson`:
each step takes every row with the same probability, batch size over rows (Abadi et al., arXiv 1607.00133): steps vary in size."""


@dataclass(frozen=True)
class Stream:
    """One stream of samples into a batch: which data set and split, drawn how, transformed how."""

    role: str
    """Key of the recipe's `data`."""
    split: Split
    transform: Transform
    columns: tuple[str, ...]
    """Columns to read from the shards; `row_id` always comes along."""
    sampling: Sampling = "shuffled"
    partners: int = 0
    """How many further rows each draw brings (mosaic: 3)."""
    ratio: float = 1.0
    """Rows of this stream per row of the batch size."""
    by: str = "label"
    """Of `balanced`, the column of class ids, or of lists of them; of `identities`, that or a column of text; of `weighted`,
    the column of weights, or of class ids where `weights` says what each weighs."""
    weights: tuple[float, ...] = ()
    """Of `weighted`, by class id: how often a row of the class is drawn, beside the others."""
    share: float = 1.0
    """Of the split's rows, above 0: a random part of them, always the same one, which a larger share contains."""
    together: int = 4
    """Of `identities`, K: how many rows of one follow each other."""
    pairs: bool = False
    """Whether rows meet their neighbours (mixup): microbatches then end between pairs."""
    beside: int | None = 0
    """Bytes of a sample, about, beyond an image of the preprocess specification's size; None: nobody knows."""


@dataclass(frozen=True)
class Context:
    """What a loss may know of the run besides its batch."""

    step: int
    """Optimizer step, from 0."""
    epoch: int
    steps: int
    """Optimizer steps of the whole run."""
    generator: torch.Generator
    """Seeded by (seed, step, rank): a resumed run draws the same numbers."""
    rank: int
    world: int
    gather: Callable[[torch.Tensor], torch.Tensor]
    """Concatenate a tensor over the ranks along dimension 0, with gradient."""
    shared: int = 0
    """A seed drawn from (seed, step), not negative: the same on all ranks and for each of the step's microbatches."""


Loss = Callable[["nn.Module", Batch, Context], "tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]"]
"""(model, batch, context) → (sum over the valid rows, their count, further sums to log by name)."""


@dataclass(frozen=True)
class Phase:
    """One optimizer's part of a step: a plain task has one, a GAN two.

    The engine wraps `loss` over the whole model in one DDP module per phase, trains the parameters whose names begin
    with one of `parameters` and freezes the others meanwhile.
    """

    name: str
    loss: Loss
    parameters: tuple[str, ...] = ("",)
    """Prefixes of parameter names; the default is all."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the recipe's `train.optimizer` for this phase."""
    every: int = 1
    """Run this phase on every n-th step."""
    after_step: Callable[[nn.Module, Context], None] | None = None
    """Called after the optimizer's step, without gradient (a momentum encoder, a queue, weight clipping)."""
    uncounted: str = ""
    """What to tell the person when the loss's count is 0 over a whole epoch, which then ends the run; empty: nothing."""


class Metrics(Protocol):
    """States are gathered by row and computed once, in row order: the same number on any number of workers.

    Those that compare rows with each other have `pairwise = True`: a row that is drawn twice would be its own likeness. They may
    have `nearest(states, row)`, too: (row, likeness) of those that the page shows beside a mistaken one.
    """

    primary: str
    """The metric by which checkpoints, trials and variants are compared."""
    mode: Literal["max", "min"]

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        """What `compute` needs of each row: arrays of N rows (object arrays where ragged)."""
        ...

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars by name, from all rows' states in the order of their `row_id`."""
        ...

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Further JSON-able results (per class, confusion, curves), kept in the artifact."""
        ...

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        """Show the tables on the report page."""
        ...

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """How wrong each row is, N floats, for the page's worst mistakes; 0 where it is right."""
        ...


@dataclass(frozen=True)
class Field:
    """One typed input or output of the endpoint."""

    name: str
    kind: Literal[
        "image", "text", "class", "seed", "label", "probabilities", "mask", "boxes", "segments", "number", "embedding"
    ]
    required: bool = True
    about: str = ""


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


@dataclass(frozen=True)
class ExportSpec:
    """How to write the model as ONNX: it is traced on `inputs`, whose first dimension stays dynamic."""

    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    quantize: bool = True
    """Whether static int8 quantization makes sense for it."""


@dataclass(frozen=True)
class Unsupported:
    """A cell of tasks × stages that does not work, and why."""

    reason: str


class Task:
    """What is trained, measured and served, for one kind of problem.

    A plain supervised task writes `build`, `streams`, `phases`, `decode` and `metrics`; the rest have their one
    default here. `datasets` maps the recipe's roles to what is known of them.
    """

    Config: ClassVar[type[TaskConfig]]
    about: ClassVar[str]
    """One line for `mapsto tasks`."""
    ragged: ClassVar[tuple[str, ...]] = ()
    """Names of a sample's values that differ in length."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Stage → reason."""

    def __init__(self, config: Any, datasets: Mapping[str, DatasetInfo]) -> None:
        self.config = config
        self.datasets = datasets

    def check(self) -> None:
        """Raise UserError when the data sets do not fit the task (no labels, one class only, ...)."""

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        """The untrained model. Its inputs are the batch's arrays as they are (uint8 N×H×W×3 images): normalisation
        is inside it, so that every runtime and every export normalises alike. Without parents it is only the shape for weights
        that are there already: nothing is fetched."""
        raise NotImplementedError

    def streams(self, split: Split) -> Mapping[str, Stream]:
        """Name → stream. With several, a batch's names carry the stream's as prefix: `style.image`."""
        raise NotImplementedError

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples into one contiguous array per name; ragged values become a buffer and `<name>_offsets`, and so do
        the windows of images, where there are windows."""
        return self.stacked(samples, self.ragged)

    def stacked(self, samples: Sequence[Sample], ragged: Sequence[str]) -> Batch:
        """What `collate` says, with these ragged names."""
        if self.windows is None:
            return stack(samples, ragged)
        samples = [{name: value for name, value in sample.items() if name != "original"} for sample in samples]
        seen = ("image",) if samples[0]["image"].ndim == 4 else ()
        return stack(samples, (*ragged, *seen))

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        """None where nothing is learnt: the run then goes over the data for `initialise` and the evaluation only."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's inputs by name, in the order of its forward, from a batch (arrays or tensors)."""
        return {"image": batch["image"]}

    def parts(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """What the model is asked for a batch of requests, call by call; `decode` gets the answers end to end. One call,
        where a request is one row; more where it becomes several that need each other, such as a large picture's tiles,
        whose calls see the whole picture beside them. Rows of `windows` do not: any of them may go into one call."""
        yield self.inputs(batch)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """What an exported model returns too: name → tensor with N rows."""
        out = model(**self.inputs(batch))
        return out if isinstance(out, dict) else {"logits": out}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        """Answers in the task's terms and the original's pixels; numpy only, the same for every runtime."""
        raise NotImplementedError

    def metrics(self) -> Metrics:
        raise NotImplementedError

    @property
    def preprocess(self) -> Preprocess | None:
        """The one preprocess specification of evaluate, predict, compress and serve; None without an input image."""
        return None

    @property
    def windows(self) -> Windows | None:
        """How evaluate, predict and serve look at large images, if not at once. With windows a sample's `image` has one
        row of the model's for each of them (K×H×W×3), so `collate` makes it ragged, and `decode` puts an image's rows
        together again: `windows.cut(height, width)` says which they are. They are in the data of an evaluation, too, where
        `parts` is of requests alone."""
        return None

    def signature(self) -> Signature:
        return Signature((Field("image", "image"),), (Field("label", "label"),))

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        """One request's fields (`image`: encoded bytes) to a sample of the model's inputs, and its geometry. With
        windows the sample has the `original`, too, for `render`; `collate` leaves it out."""
        if self.preprocess is None:
            raise NotImplementedError(f"{type(self).__name__} has no preprocess specification and no prepare()")
        data = image_of(request)
        if self.windows is None:
            image, geometry = self.preprocess(data)
            return {"image": image}, geometry
        image, original = looks(data, self.preprocess, self.windows)
        return {"image": image, "original": original}, Geometry(np.eye(3), *original.shape[:2])

    def export(self) -> ExportSpec | Unsupported:
        return Unsupported("this task has no export")

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        """A picture of the answer: H×W×3 uint8. The sample's `image` is H×W×3 uint8 where the task has one."""
        return sample["image"]

    def showcase(self, images: Sequence[bytes]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Heading → requests whose answers the evaluation's page shows side by side, as `render` draws them; `images`: a few
        of the split, encoded. Nothing by default: the worst mistakes are shown."""
        return {}

    def truth(self, sample: Sample) -> str:
        """The sample's truth in words, for a report's captions; empty where there is nothing to say."""
        return ""

    def initialise(self, model: nn.Module, batch: Batch) -> None:
        """Set weights from the first training batch before training begins (whitening); nothing by default."""


def image_of(request: Mapping[str, Any]) -> Any:
    """A request's `image`, as it came. UserError where there is none."""
    data = request.get("image")
    if data is None or len(data) == 0:
        raise UserError("the request has no image: send an encoded image (JPEG, PNG, WebP, ...) as `image`")
    return data


def direct(task: Task) -> Task:
    """The task with a forward that takes the model's inputs themselves, where training's takes the whole batch."""
    bare = copy(task)
    bare.inputs = dict  # ty: ignore[invalid-assignment]  # the forward asks self.inputs(batch): already done
    return bare
