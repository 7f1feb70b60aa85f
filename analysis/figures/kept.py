"""What the figures in a folder were made of: the report shows those that it would only draw again.

.figures.json beside them has the hash of all that they follow from (inputs.py), and the sha256 of every file. Figures
of other runs, of runs that have changed since, of other code, or changed themselves, are not found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from analysis.inputs import sha256
from noisyrl.records import write_atomic

_RECORD = ".figures.json"


def note(out: Path, made_of: str, name: str, caption: str, files: Sequence[Path]) -> None:
    """Adds a figure to the record; those that were made of something else leave it."""
    known = _record(out, made_of)
    known[name] = {"caption": caption, "files": {file.name: sha256(file.read_bytes()) for file in files}}
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / _RECORD, json.dumps({"made of": made_of, "figures": known}, indent=1) + "\n")


def find(out: Path, made_of: str, ending: str) -> dict[str, tuple[str, list[bytes]]]:
    """{name: (caption, content of the files with this ending)} of the figures that are as they would be drawn now."""
    found = {}
    for name, figure in _record(out, made_of).items():
        known = {out / file: stated for file, stated in figure["files"].items() if file.endswith(ending)}
        contents = {file: file.read_bytes() for file in known if file.is_file()}
        if known == {file: sha256(content) for file, content in contents.items()}:
            found[name] = (figure["caption"], list(contents.values()))
    return found


def _record(out: Path, made_of: str) -> dict[str, dict]:
    try:
        record = json.loads((out / _RECORD).read_text())
    except (OSError, ValueError):  # not there, or damaged: nothing is known of the figures
        return {}
    return record["figures"] if record["made of"] == made_of else {}
