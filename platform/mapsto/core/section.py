"""What every section of the recipe is: a frozen model that knows all of its fields."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"'{value}' is no regular expression: {error}") from error
    return value


Fraction = Annotated[float, Field(ge=0, le=1)]
Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""
