"""What products are made of, as one hash: `python -m analysis.inputs runs sweeps conf`.

The store is append-only and its products are made by many commands, so that time stamps say nothing. The Makefile makes
a product again, and the report draws a figure again, when this hash is another one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import noisyrl

_CODE = (Path(__file__).parent, Path(noisyrl.__path__[0]))  # with specs, claims and published values
_LIBRARIES = ("matplotlib", "numpy", "pandas", "pyarrow", "scipy", "tokenizers")
_IN_NO_PRODUCT = (".safetensors", ".gz", ".wandb", ".pyc")  # weights and texts: nearly all bytes of a store


def digest(runs: Path, *folders: Path, options: Sequence[str] = ()) -> str:
    """sha256 of every run folder as it stands, of these folders, the code, the libraries, and the options.

    Arrays (.npz) are known by the checksums in their directory, which reading them verifies: rollouts are large.
    """
    stored = [path for made in runs.glob("*/manifest.json") for path in made.parent.rglob("*")]
    lines = [json.dumps([sys.version, *map(version, _LIBRARIES), *options]), *_lines(runs, stored)]
    for folder in (*_CODE, *folders):
        lines += _lines(folder, folder.rglob("*"))
    return sha256("\n".join(lines).encode())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lines(folder: Path, paths: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(folder)} {_content(path)}"
        for path in sorted(paths)
        if path.suffix not in _IN_NO_PRODUCT and path.is_file()
    ]


def _content(path: Path) -> str:
    if path.suffix == ".npz":
        try:
            with ZipFile(path) as parts:
                return str([(part.filename, part.CRC, part.file_size) for part in parts.infolist()])
        except BadZipFile:  # being written
            pass
    return sha256(path.read_bytes())


if __name__ == "__main__":
    print(digest(*map(Path, sys.argv[1:])))
