"""One microbatch's place in a run: what the loader attaches to each batch and the engine acts on."""

from __future__ import annotations

from dataclasses import dataclass

from .sample import Split


@dataclass(frozen=True)
class Item:
    """A run is one fixed sequence of microbatches; worker r of W takes those whose number is r modulo W.

    An epoch is its training microbatches, k to each optimizer step (k = workers x accumulate), then, in epochs that
    are evaluated, the microbatches of `val`, padded with empty ones to a multiple of W.
    """

    split: Split
    epoch: int
    step: int
    """Optimizer step in the whole run, from 0; for `val` the number of steps done."""
    micro: int
    """Number within its optimizer step, or within its evaluation."""
    ends_step: bool = False
    """The last microbatch of this optimizer step for this worker: step the optimizer after it."""
    ends_epoch: bool = False
    """The last microbatch of the epoch for this worker (of training, or of its evaluation when it has one)."""
