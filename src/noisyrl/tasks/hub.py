"""Public benchmarks from local copies: data/NAME/ holds the files of a data set as the Hugging Face hub has them.

Nothing is downloaded here. `make data` says which copies are there and prints the command that fetches each other one.
Every benchmark is zero-shot, worded and graded like `data=jsonl`. Options of a choice are ordered by a hash of question
and option, the same for everyone, so that no order of the file gives the answer away.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from noisyrl.spec import InputError, spec
from noisyrl.tasks.base import Split, Task
from noisyrl.tasks.graders import GRADERS, VERSIONS
from noisyrl.tasks.jsonl import INSTRUCTIONS
from noisyrl.types import Grade, Prompt


@dataclass(frozen=True)
class Source:
    """Where a benchmark comes from and how it is graded."""

    repo: str
    grader: Literal["math", "rounded", "letter"]
    questions: int
    """Of the whole file, when these lines were written."""
    files: str = "*"
    """Stem of its files; others in the folder are other benchmarks."""
    gated: bool = False
    """Its terms forbid showing questions: texts are never stored."""
    take: int | None = None
    """Questions asked, those with the smallest hash; None = all."""


SOURCES = {
    "math500": Source("HuggingFaceH4/MATH-500", "math", 500),
    "aime24": Source("HuggingFaceH4/aime_2024", "math", 30),
    "aime25": Source("math-ai/aime25", "math", 30),
    "amc23": Source("math-ai/amc23", "math", 40),
    "minerva": Source("math-ai/minervamath", "rounded", 272),
    "gpqa_diamond": Source("Idavidrein/gpqa", "letter", 198, files="gpqa_diamond", gated=True),
    "supergpqa": Source("m-a-p/SuperGPQA", "letter", 26_529, take=1000),
}

# Names of columns in the data sets and their usual copies, compared without case; the first that is there counts.
_QUESTION = ("problem", "question")
_ANSWER = ("answer", "correct answer")
_ID = ("unique_id", "uuid", "record id", "id")
_DOMAIN = ("subject", "subfield", "subdomain", "type")
_KINDS = ("jsonl", "parquet", "csv")


@spec
class HubTask(Task):
    """One benchmark; it has a split "test" and nothing to train on."""

    name: Literal["math500", "aime24", "aime25", "amc23", "minerva", "gpqa_diamond", "supergpqa"]
    """Which one."""
    root: str = "data"
    """Folder with a folder NAME of data files, anywhere below it: *.jsonl, *.parquet or *.csv."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("test",)

    @property
    def source(self) -> Source:
        return SOURCES[self.name]

    @property
    def gated(self) -> bool:
        """Whether texts about it may not be stored."""
        return self.source.gated

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """InputError: the files are not there (says how to fetch them), or a row lacks a column."""
        assert split == "test", split
        return self._prompts

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        return GRADERS[self.source.grader](turns[-1], prompt.answer)

    def graded_by(self, prompt: Prompt) -> str:
        """Name and version of the rule."""
        return VERSIONS[self.source.grader]

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.name

    @property
    def fetch(self) -> str:
        """The command that brings the files, for a person to give."""
        return f"hf download {self.source.repo} --repo-type dataset --local-dir {self.folder}"

    @property
    def files(self) -> list[Path]:
        """Data files of one kind, by name; [] if there are none. InputError: there are several kinds."""
        found = [path for kind in _KINDS for path in sorted(self.folder.rglob(f"{self.source.files}.{kind}"))]
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(self.root).parts)]
        if len({path.suffix for path in found}) > 1:
            names = ", ".join(str(path) for path in found)
            raise InputError(f"{names}: the same questions in several formats? Keep one in {self.folder}")
        return found

    @cached_property
    def _prompts(self) -> tuple[Prompt, ...]:
        if not self.files:
            raise InputError(f"benchmark {self.name}: no data files in {self.folder}/. Fetch them: {self.fetch}")
        prompts = [self._prompt(row, where) for path in self.files for where, row in _rows(path)]
        if self.source.take is None:
            return tuple(prompts)
        chosen = {prompt.uid for prompt in sorted(prompts, key=lambda prompt: _hash(prompt.uid))[: self.source.take]}
        return tuple(prompt for prompt in prompts if prompt.uid in chosen)

    def _prompt(self, row: Mapping[str, Any], where: str) -> Prompt:
        question = str(_column(row, _QUESTION, where))
        identity = next((row[name] for name in _ID if row.get(name) is not None), None)
        uid = f"hub:{self.name}:{_hash(question)[:16] if identity is None else identity}"
        if self.source.grader == "letter":
            options, right = _options(row, where)
            order = sorted(range(len(options)), key=lambda i: _hash(f"{uid}:{i}"))
            lines = [f"{chr(ord('A') + place)}) {options[i]}" for place, i in enumerate(order)]
            question, answer = "\n".join([question, "", *lines]), chr(ord("A") + order.index(right))
        else:
            answer = _text(_column(row, _ANSWER, where))
        messages = ({"role": "user", "content": f"{question}\n\n{INSTRUCTIONS[self.source.grader]}"},)
        domain = next((str(row[name]) for name in _DOMAIN if row.get(name)), self.name)
        return Prompt(messages, answer, f"hub_{self.name}", uid, domain)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE:ROW", row with its keys in lower case)."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq  # only here: importing it takes its time

            rows = pq.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        # The message of a decoder may quote the file, which is not to be shown of a gated set.
        raise InputError(f"{path} cannot be read ({type(error).__name__}): fetch it again") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}:{number}", {str(key).lower(): value for key, value in row.items()}


def _column(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise InputError(f"{where}: none of the columns {', '.join(names)}; the row has {', '.join(sorted(row))}")


def _options(row: Mapping[str, Any], where: str) -> tuple[list[str], int]:
    """The options in the file's order, and which one is right."""
    if "correct answer" in row:
        wrong = [row[name] for name in sorted(row) if name.startswith("incorrect answer") and row[name]]
        return [str(option).strip() for option in (_column(row, ("correct answer",), where), *wrong)], 0
    options = [str(option) for option in _column(row, ("options",), where)]
    right = ord(str(_column(row, ("answer_letter",), where)).strip().upper()[0]) - ord("A")
    if not 0 <= right < len(options):
        raise InputError(f"{where}: answer_letter is not one of the {len(options)} options")
    return options, right


def _text(answer: Any) -> str:
    """27.0 is 27: some copies hold whole numbers as floats."""
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def public_benchmark(name: str, root: str = "data") -> HubTask:
    """InputError: no benchmark of that name."""
    if name not in SOURCES:
        raise InputError(f"no public benchmark {name!r}; there are: {', '.join(SOURCES)}")
    return HubTask(name=name, root=root)  # type: ignore[arg-type] # a key of SOURCES


def inventory(root: str = "data") -> list[str]:
    """One line for each benchmark: what is there, or how to fetch it."""
    lines = []
    for name in SOURCES:
        task = public_benchmark(name, root)
        if not task.files:
            gate = " (gated: accept its terms first)" if task.gated else ""
            lines.append(f"{name:13} missing; {task.fetch}{gate}")
            continue
        try:
            lines.append(f"{name:13} {len(task.prompts('test'))} questions in {task.folder}/")
        except InputError as error:
            lines.append(f"{name:13} damaged: {error}")
    return lines


if __name__ == "__main__":
    print("\n".join(inventory()))
