"""How a config class is declared, and the one error a user meets for bad input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

# Every class named by `_target_` in conf/ is declared with @spec: frozen, keyword-only, unknown keys and wrong types
# refused when the config is built, before a model is loaded. Field docstrings are part of the declaration.
spec = dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        validate_default=True,
    ),
)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

__all__ = ["Count", "Fraction", "InputError", "Literal", "Natural", "NonNegative", "Positive", "spec"]


class InputError(ValueError):
    """Bad input: the message names the key, file or line, says what was given, and what to set instead."""
