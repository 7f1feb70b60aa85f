"""eval/<eval_id>/ in a run folder: written aside, renamed when complete, never changed again.

aggregate.jsonl and samples.parquet hold nothing but results, so that scoring the same weights twice gives the same
bytes. meta.json says how the questions were asked, texts.jsonl.gz (if kept) what was answered: with both, and the
task, answers can be graded again. SHA256SUMS is what `sha256sum -c` reads: every file is checked against it when it is
read, so that no changed byte enters a table. An evaluation that another one replaces goes to eval/superseded/, where no
table looks.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisyrl.evaluation import repeats
from noisyrl.records import SUMS, checksums, untouched
from noisyrl.spec import InputError

if TYPE_CHECKING:
    from noisyrl.evaluation.rows import Subject  # which imports torch: tables are made without

SCHEMA_VERSION = "1"
SAMPLE_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("eval_id", pa.string()),
        ("benchmark", pa.string()),
        ("protocol", pa.string()),
        ("qid", pa.string()),
        ("doc_hash", pa.string()),
        ("cluster_id", pa.string()),  # the dialogue for a dialogue; questions share no material, so always qid
        ("domain", pa.string()),
        ("repeat", pa.int32()),
        ("gen_seed", pa.uint64()),
        ("prompt_hash", pa.string()),
        ("score", pa.float32()),  # 0 where grader_status is not "scored"
        ("extracted", pa.string()),
        ("extraction", pa.string()),  # "direct" or "none"; the graders here have no fallback
        ("gold_hash", pa.string()),
        ("finish_reason", pa.string()),
        ("truncated", pa.bool_()),
        ("no_answer", pa.bool_()),
        ("grader_status", pa.string()),
        ("n_prompt_tokens", pa.int32()),
        ("n_gen_tokens", pa.int32()),
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)


AGGREGATE, SAMPLES, META, TEXTS = "aggregate.jsonl", "samples.parquet", "meta.json", "texts.jsonl.gz"
SUPERSEDED = "superseded"


def is_complete(folder: Path) -> bool:
    """Whether an evaluation is there; a folder gets its name only once everything is in it."""
    return folder.is_dir()


def has_texts(folder: Path) -> bool:
    """Whether the answers themselves were kept."""
    return (folder / TEXTS).exists()


Rows = Sequence[Mapping[str, Any]]


def write(
    folder: Path, *, aggregate: Rows, samples: Rows | pa.Table, meta: Mapping[str, Any], texts: Rows = ()
) -> None:
    """The files of one evaluation; texts.jsonl.gz only if there are texts. A folder that exists already is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (aside / AGGREGATE).write_text(_lines(aggregate))
        pq.write_table(samples if isinstance(samples, pa.Table) else _table(samples), aside / SAMPLES)
        if texts:
            # No time stamp inside: the same texts give the same bytes.
            (aside / TEXTS).write_bytes(gzip.compress(_lines(texts).encode(), mtime=0))
        (aside / META).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
        (aside / SUMS).write_text(checksums(aside))
        aside.chmod(0o755)  # mkdtemp makes it private
        os.rename(aside, folder)
    except OSError:
        if not is_complete(folder):  # else another process was faster, with the same results
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def adopt(made: Path, folder: Path, subject: Subject) -> None:
    """`folder` with the evaluation in `made`, in the name of another run."""
    from noisyrl.evaluation.rows import of_run

    samples = read_samples(made)
    name = samples.schema.get_field_index("run_id")
    write(
        folder,
        aggregate=[of_run(row, subject) for row in read_aggregate(made)],
        samples=samples.set_column(name, samples.field(name), _repeated(subject.run_id, len(samples))),
        meta=read_meta(made) | {"subject": asdict(subject)},
        texts=read_texts(made) if has_texts(made) else (),
    )


def read_aggregate(folder: Path) -> list[dict[str, Any]]:
    """The rows of aggregate.jsonl. InputError: it was changed."""
    return [json.loads(line) for line in _read(folder / AGGREGATE).decode().splitlines()]


def read_samples(folder: Path) -> pa.Table:
    """The table of samples.parquet. InputError: it was changed, or written under another schema version."""
    # read_table imports far more; a process that ends while threads of a pool start is aborted.
    table = pq.ParquetFile(pa.BufferReader(_read(folder / SAMPLES))).read(use_threads=False)
    version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{folder / SAMPLES}: schema version {version}, this code reads {SCHEMA_VERSION}; "
            f"delete {folder} and run `python src/eval.py` again"
        )
    return table


def read_texts(folder: Path) -> list[dict[str, Any]]:
    """{"benchmark", "qid", "repeat", "turns"} of every answer. InputError: the texts were not kept, or were changed."""
    path = folder / TEXTS
    if not has_texts(folder):
        raise InputError(
            f"{folder} keeps no texts, so they cannot be graded again: "
            "run `python src/eval.py run=NAME eval.keep_text=true`, with the run's `eval=` option"
        )
    return [json.loads(line) for line in gzip.decompress(_read(path)).decode().splitlines()]


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json. InputError: there is none, or it was changed."""
    return json.loads(_read(folder / META))


def set_aside(folder: Path) -> Path:
    """Moves an evaluation to superseded/ beside it, in one step; returns where it is now."""
    place = folder.parent / SUPERSEDED
    place.mkdir(exist_ok=True)
    target, number = place / folder.name, 1
    while target.exists():
        number += 1
        target = place / f"{folder.name}-{number}"
    os.rename(folder, target)
    return target


def _read(path: Path) -> bytes:
    return untouched(path, f"delete {path.parent} and evaluate again, `python src/eval.py run=NAME`")


def _repeated(text: str, times: int) -> pa.Array:
    """Made from bytes: for any value of Python's own pyarrow imports pandas, a quarter of a second at every start."""
    content = text.encode()
    ends = np.arange(times + 1, dtype=np.int32) * len(content)
    return pa.StringArray.from_buffers(times, pa.py_buffer(ends), pa.py_buffer(content * times))


def _table(samples: Rows) -> pa.Table:
    """Under SAMPLE_SCHEMA, and with a column for each further measure that some row has."""
    schema = SAMPLE_SCHEMA
    for name in repeats.MEASURES:
        if any(name in row for row in samples):
            schema = schema.append(pa.field(name, pa.float32()))
    return pa.Table.from_pylist(list(samples), schema=schema)


def _lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
