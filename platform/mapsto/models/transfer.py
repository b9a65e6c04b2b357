"""Weights of another run or another library into a model (`train.init.weights`, `task.features.weights`). Nothing but tensors is ever unpickled."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import UserError
from ..core.storage import Storage

WRAPPERS = ("module.", "_orig_mod.", "net.", "model.")
"""Prefixes that DataParallel, torch.compile, and a model inside another one put before a parameter's name."""
BACKBONES = (".body.", ".backbone.")
"""Modules that hold a timm network whole: what a classifier of that network learnt fits there, too, also where
timm, for its feature maps, has made `stem.0` to `stem_0`."""
INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where a checkpoint of several things keeps its state dict."""
STATISTICS = ("running_mean", "running_var")
SHOWN = 4


@dataclass(frozen=True)
class Transfer:
    """What became of each name. `missing`: parameters and batch norm's statistics of the model that the weights lack; other
    buffers (counters, the pixels' normalisation) are loaded where they are there, and not missed."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    """`name: (10, 64), not (1000, 64)`: the model's shape, then the weights'."""

    def lines(self) -> list[str]:
        """The same for people: the numbers, and the first names of what did not fit."""
        found = [f"init: {len(self.matched)} tensors of {self.source} matched"]
        for what in ("missing", "unexpected", "mismatched"):
            names = getattr(self, what)
            if names:
                more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
                found.append(f"init: {what}: {', '.join(names[:SHOWN])}{more}")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load_weights(uri: str, storage: Storage) -> dict[str, torch.Tensor]:
    """Name → tensor, on the CPU, of a safetensors file or a PyTorch file. Raises UserError for a file that is none, or
    holds code."""
    data = storage.read(uri)
    if uri.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(data)
        except SafetensorError as error:
            raise UserError(f"{uri}: no safetensors file ({error})") from error
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{uri}: no PyTorch file of tensors alone; nothing else is unpickled here. Save its state_dict(), or safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{uri}: no PyTorch or safetensors file ({line[:120]})") from error
    return _state_dict(found, uri)


def transfer(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: str,
    *,
    strict: bool = False,
    setting: str = "train.init.weights",
) -> Transfer:
    """Copy into the model, in place, every tensor whose name, wrappers aside, and shape fit; a name that the model lacks
    may be one of its backbone's.

    Raises UserError when none does, and, with `strict`, when anything is missing, unexpected or of another shape; it names
    the recipe's `setting`.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {bare(name): name for name in own}
    if len(plain) != len(own):
        plain = {}  # wrappers are a part of this model's own names
    inner = {name.split(mark)[-1]: name for mark in BACKBONES for name in own if mark in name}
    matched, unexpected, mismatched = list[str](), list[str](), list[str]()
    fitting: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        short = bare(name)
        target = name if name in own else plain.get(short) or inner.get(short) or inner.get(short.replace(".", "_", 1))
        if target is None:
            unexpected.append(name)
        elif own[target].shape != value.shape:
            mismatched.append(f"{target}: {tuple(own[target].shape)}, not {tuple(value.shape)}")
        else:
            matched.append(target)
            fitting[target] = value
    reached = {*matched, *(line.split(":", 1)[0] for line in mismatched)}
    parameters = {name for name, _ in model.named_parameters()}
    missing = [n for n in own if n not in reached and (n in parameters or n.endswith(STATISTICS))]
    report = Transfer(source, tuple(matched), tuple(missing), tuple(unexpected), tuple(mismatched))
    if not parameters & set(matched):
        raise UserError(
            f"{setting}: {source}: no tensor fits this model; it has {_first(weights)}, the model {_first(own)}"
        )
    if strict and (missing or unexpected or mismatched):
        raise UserError(f"train.init.strict: {'; '.join(report.lines())}")
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    return report


def bare(name: str) -> str:
    """A name without the wrappers before it."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _state_dict(found: Any, uri: str) -> dict[str, torch.Tensor]:
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise UserError(f"{uri}: no state dict in it: a mapping from names to tensors")
    return tensors


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{', '.join(listed[:3])}, ..." if len(listed) > 3 else ", ".join(listed) or "nothing"
