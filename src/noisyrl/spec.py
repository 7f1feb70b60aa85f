"""How a config class is declared, and the one error a user meets for bad input."""

from __future__ import annotations

from typing import Annotated, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(
    extra="forbid",
    allow_inf_nan=False,
    arbitrary_types_allowed=True,
    validate_default=True,
)
C = TypeVar("C", bound=type)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def spec(cls: C) -> C:
    """Declares a class that `_target_` in conf/ may name: a frozen, keyword-only pydantic dataclass.

    Unknown keys, wrong types and broken bounds are refused when the config is built, before a model is loaded. The
    string below a field says what it means: unit, bound, source.
    """
    return cast(C, dataclass(frozen=True, kw_only=True, config=_CONFIG)(cls))


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class InputError(ValueError):
    """Bad input: the message names the key, file or line, says what was given, and what to set instead."""
