"""What a table is to show: the keys of analysis/specs/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from noisyrl.spec import InputError, spec


@spec
class Column:
    """One benchmark."""

    label: str
    benchmark: str
    where: dict[str, Any] = Field(default_factory=dict)
    """Values of the sweep's parameters that the column's runs have, such as data: math."""


@spec
class Spec:
    """What analysis/specs/*.yaml may say."""

    caption: str
    sweep: str
    """Stem of the file in sweeps/ that plans the runs."""
    rows: list[str]
    """Parameters of the sweep whose combinations make the rows."""
    columns: list[Column]
    metric: str = "acc"
    protocol: str = "greedy"
    limit: int | None = None
    """The evaluation's `limit`; None = all questions."""
    filter: dict[str, Any] = Field(default_factory=dict)
    """Dotted manifest keys and the values they must have; other runs do not exist for this table."""
    start_row: bool = True
    """Show the model before training as the first row."""
    resamples: int = 10_000
    """Bootstrap draws."""


def read_spec(path: Path) -> Spec:
    """InputError: no such file, or a key or value that a spec does not have."""
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.yaml")))
        raise InputError(f"no table {path.stem}: {path} does not exist. There are: {known or 'none'}")
    try:
        return Spec(**yaml.safe_load(path.read_text()))
    except (ValidationError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}") from None
