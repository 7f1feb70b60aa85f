"""Public benchmarks from copies on this disk: data/NAME/ holds the files of a data set as the Hugging Face hub has it.

Nothing is downloaded here. `make data` says which copies are there and prints the command that fetches each other one.
Every benchmark is zero-shot, worded and graded like `data=jsonl`. Options of a choice are ordered by a hash of question
and option, the same for everyone, so that no order of the file gives the answer away.

`sgd5` is the exception: its files are those of `data=sgd5`, in data/sgd/ (sgd/data.py), and its dialogues are played
with the scripted user: for each of five domains a benchmark of services seen in training and one (_ood) of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from noisyrl.spec import InputError, spec
from noisyrl.tasks.base import Split, Task
from noisyrl.tasks.graders import GRADERS, VERSIONS, one_letter
from noisyrl.tasks.hub_files import HubFiles, Row, column, rows, text_hash
from noisyrl.tasks.jsonl import INSTRUCTIONS
from noisyrl.tasks.sgd import data as sgd
from noisyrl.tasks.sgd.task import Sgd
from noisyrl.types import Grade, Prompt


@dataclass(frozen=True)
class Source:
    """A benchmark: its files and how its questions are put and graded."""

    files: HubFiles
    grader: Literal["math", "rounded", "letter", "freetext", "by type"]
    """Rule of tasks/graders.py. letter: the row lists options; by type: its answer_type decides."""
    field: Literal["math", "science"]
    """Out of distribution for a model that was trained on the other one."""
    questions: int
    """Asked of the whole file as it was when these lines were written."""
    take: int | None = None
    """Questions asked: each domain has its share, those with the smallest hashes; None = all."""
    options_removed: bool = False
    """Only the question of a choice is asked, and the right option's text is the answer."""


def _gpqa(names: str) -> HubFiles:
    return HubFiles("Idavidrein/gpqa", "gpqa", names=names, gated=True)


SUPERGPQA: HubFiles = HubFiles("m-a-p/SuperGPQA", "supergpqa")
SOURCES: dict[str, Source] = {
    "math500": Source(HubFiles("HuggingFaceH4/MATH-500", "math500"), "math", "math", 500),
    "aime24": Source(HubFiles("HuggingFaceH4/aime_2024", "aime24"), "math", "math", 30),
    "aime25": Source(HubFiles("math-ai/aime25", "aime25"), "math", "math", 30),
    "amc23": Source(HubFiles("math-ai/amc23", "amc23"), "math", "math", 40),
    "minerva": Source(HubFiles("math-ai/minervamath", "minerva"), "rounded", "math", 272),
    "supergpqa": Source(SUPERGPQA, "letter", "science", 1000, take=1000),
    "gpqa_diamond": Source(_gpqa("gpqa_diamond"), "letter", "science", 198),
    "gpqa_open": Source(_gpqa("gpqa_main"), "freetext", "science", 448, options_removed=True),
    "simpleqa": Source(HubFiles("basicv8vc/SimpleQA", "simpleqa"), "freetext", "science", 4326),
    "hle_text": Source(HubFiles("cais/hle", "hle_text", names="test*", gated=True), "by type", "science", 2158),
    "mmlu_pro": Source(HubFiles("TIGER-Lab/MMLU-Pro", "mmlu_pro", names="test*"), "letter", "science", 1000, take=1000),
}

SGD = "sgd5"
"""The benchmark of dialogues."""

HELD_OUT = 0.15
"""Share of SuperGPQA's subfields that are never trained on; the benchmark asks 1000 questions of them."""

# Names of columns in the data sets and their usual copies, compared without case; the first that is there counts.
_QUESTION = ("problem", "question")
_ANSWER = ("answer", "correct answer")
_ID = ("unique_id", "uuid", "record id", "question_id", "id")
_DOMAIN = ("subject", "subfield", "subdomain", "category", "type")


@dataclass(frozen=True)
class Question:
    """A row of a data set as it is asked."""

    prompt: Prompt
    grader: str
    bare: str
    """The question alone: no options, no instruction."""
    asked: str
    """With its options, if it has any; no instruction."""


@spec
class HubTask(Task):
    """One benchmark; it has a split "test" and nothing to train on."""

    name: Literal[
        "math500", "aime24", "aime25", "amc23", "minerva", "supergpqa", "gpqa_diamond", "gpqa_open", "simpleqa",
        "hle_text", "mmlu_pro",
    ]  # fmt: skip
    """Which one."""
    root: str = "data"
    """Folder with a folder of data files, anywhere below it: *.jsonl, *.parquet or *.csv."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return ("test",)

    @property
    def source(self) -> Source:
        return SOURCES[self.name]

    @property
    def field(self) -> Literal["math", "science"]:
        """Out of distribution for a run that was trained on another one."""
        return self.source.field

    @property
    def gated(self) -> bool:
        """Whether texts about it may not be stored."""
        return self.source.files.gated

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """InputError: the files are not there (says how to fetch them), or a row lacks a column."""
        assert split == "test", split
        return tuple(question.prompt for question in self.questions)

    def grade(self, prompt: Prompt, turns: Sequence[str]) -> Grade:
        return GRADERS[self._graders[prompt.uid]](turns[-1], prompt.answer)

    def graded_by(self, prompt: Prompt) -> str:
        """Name and version of the rule."""
        return VERSIONS[self._graders[prompt.uid]]

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Those asked, in the order of the file. InputError: as `prompts`."""
        source, found = self.source, []
        for path in source.files.needed(self.root, f"benchmark {self.name}"):
            for where, row in rows(path):
                if self._asked(row):
                    found.append(question_of(row, where, self.name, source.grader, source.options_removed))
        return tuple(found) if source.take is None else _shares(found, source.take)

    @cached_property
    def _graders(self) -> dict[str, str]:
        """Prompt uid -> grader."""
        return {question.prompt.uid: question.grader for question in self.questions}

    def _asked(self, row: Row) -> bool:
        if self.name == "hle_text":
            return not row.get("image")
        return self.name != "supergpqa" or is_held_out(row)


def question_of(row: Row, where: str, name: str, grader: str, options_removed: bool = False) -> Question:
    """A row as it is asked. InputError: it lacks a column; its texts are not shown."""
    bare = str(column(row, _QUESTION, where)).strip()
    identity = next((row[key] for key in _ID if row.get(key) not in (None, "")), None)
    uid = f"hub:{name}:{text_hash(bare)[:16] if identity is None else identity}"
    asked = bare
    if grader == "letter":
        options, right = _options(row, where)
        order = sorted(range(len(options)), key=lambda i: text_hash(f"{uid}:{i}"))
        asked = "\n".join([bare, "", *(f"{_letter(place)}) {options[i]}" for place, i in enumerate(order))])
        answer = _letter(order.index(right))
    elif options_removed:
        answer = _text(column(row, ("correct answer",), where))
    else:
        answer = _text(column(row, _ANSWER, where))
    if grader == "by type":
        # The options stand in the question, in the file's order.
        choice = str(column(row, ("answer_type",), where)).lower() == "multiplechoice"
        grader = "letter" if choice and one_letter(answer) else "freetext"
    messages = ({"role": "user", "content": f"{asked}\n\n{INSTRUCTIONS[grader]}"},)
    domain = next((str(row[key]) for key in _DOMAIN if row.get(key)), name)
    return Question(Prompt(messages, answer, f"hub_{name}", uid, domain), grader, bare, asked)


def is_held_out(row: Row) -> bool:
    """Whether a row of SuperGPQA is for testing: its subfield's hash decides, so no subfield is in both parts."""
    subfield = "/".join(str(row.get(key)) for key in ("discipline", "field", "subfield"))
    return int(text_hash(f"SuperGPQA held out v1|{subfield}")[:13], 16) < HELD_OUT * 16**13


def benchmark_task(name: str, root: str = "data") -> HubTask | Sgd:
    """What an entry of `eval.hub` asks. InputError: no benchmark of that name."""
    return Sgd(path=_sgd_folder(root)) if name == SGD else public_benchmark(name, root)


def public_benchmark(name: str, root: str = "data") -> HubTask:
    """One of SOURCES. InputError: no benchmark of that name."""
    if name not in SOURCES:
        raise InputError(f"no public benchmark {name!r}; there are: {', '.join([*SOURCES, SGD])}")
    return HubTask(name=name, root=root)  # type: ignore[arg-type] # a key of SOURCES


def inventory(root: str = "data") -> list[str]:
    """One line for each benchmark: what is there, or how to fetch it."""
    lines = []
    for name, source in SOURCES.items():
        try:
            if not source.files.found(root):
                gate = " (gated: accept its terms on its page first)" if source.files.gated else ""
                lines.append(f"{name:13} missing; {source.files.fetch(root)}{gate}")
                continue
            count = len(public_benchmark(name, root).questions)
            expected = "" if count == source.questions else f", {source.questions} were expected"
            lines.append(f"{name:13} {count} questions in {source.files.found(root)[0].parent}/{expected}")
        except InputError as error:
            lines.append(f"{name:13} damaged: {error}")
    return lines + sgd.inventory(Path(_sgd_folder(root)))


def _sgd_folder(root: str) -> str:
    return str(Path(root) / "sgd")


def _shares(questions: Sequence[Question], take: int) -> tuple[Question, ...]:
    """`take` of the questions, each domain in proportion to its size; in their order.

    A question's place in its domain, sorted by hash, is taken relative to the domain's size; the smallest count.
    """
    size = Counter(question.prompt.domain for question in questions)
    seen: Counter[str] = Counter()
    places = []
    for question in sorted(questions, key=lambda question: text_hash(question.prompt.uid)):
        domain = question.prompt.domain
        places.append(((seen[domain] + 0.5) / size[domain], text_hash(question.prompt.uid), question.prompt.uid))
        seen[domain] += 1
    chosen = {uid for _, _, uid in sorted(places)[:take]}
    return tuple(question for question in questions if question.prompt.uid in chosen)


def _options(row: Row, where: str) -> tuple[list[str], int]:
    """The options in the file's order, and which one is right."""
    if "correct answer" in row:
        wrong = [row[name] for name in sorted(row) if name.startswith("incorrect answer") and row[name]]
        return [str(option).strip() for option in (column(row, ("correct answer",), where), *wrong)], 0
    options = [str(option).strip() for option in column(row, ("options",), where)]
    named = str(column(row, ("answer_letter", "answer"), where)).strip().upper()
    right = ord(named[0]) - ord("A")
    if len(named) > 1 or not 0 <= right < len(options):
        raise InputError(f"{where}: the answer is not the letter of one of the {len(options)} options")
    # MMLU-Pro v1.1 fills up with these.
    kept = [i for i, option in enumerate(options) if i == right or option.upper() != "N/A"]
    return [options[i] for i in kept], kept.index(right)


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _text(answer: Any) -> str:
    """27.0 is 27: some copies hold whole numbers as floats. Several accepted golds stand one a line."""
    if isinstance(answer, list):
        return "\n".join(_text(one) for one in answer)
    whole = isinstance(answer, float) and answer.is_integer()
    return " ".join(str(int(answer) if whole else answer).split())


if __name__ == "__main__":
    from noisyrl.tasks.hub_train import training_inventory

    print("\n".join(["benchmarks", *inventory(), "", "training sets", *training_inventory(), *sgd.inventory()]))
