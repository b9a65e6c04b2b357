"""Which of a model's tensors came with timm's weights of its name (`task.model.pretrained`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .transfer import Transfer

MARK = "mapsto_fetched"


def mark(net: Any, pretrained: bool) -> None:
    """Note on each tensor of a timm network what timm has just loaded into it: all but a classifier of another number of classes.
    A tensor that is put in its place afterwards has no mark."""
    cfg = getattr(net, "pretrained_cfg", None) or {}
    if not pretrained or not cfg:
        return
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = getattr(net, "num_classes", None) != cfg.get("num_classes")
    source = ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))
    for name, tensor in _tensors(net).items():
        if not (own and name.startswith(tuple(f"{head}." for head in heads))):
            setattr(tensor, MARK, f"timm's {source}")


def fetched(model: nn.Module) -> Transfer | None:
    """What matched of timm's weights; None where none were loaded."""
    sources = {name: getattr(tensor, MARK, None) for name, tensor in _tensors(model).items()}
    told = sorted({source for source in sources.values() if source})
    if not told:
        return None
    missing = tuple(name for name, _ in model.named_parameters() if sources[name] is None)
    return Transfer(" and ".join(told), tuple(name for name, source in sources.items() if source), missing, (), ())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
