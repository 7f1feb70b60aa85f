"""No training question is a test question: `make decontaminate`.

Every question of a public training set is compared with those of every benchmark that is on this disk.
It is left out if

exact      it is one of them, digits and white space aside (other numbers in the same words are the same question)
32-gram    it shares 32 words in a row with one of them (Wen et al. 2025, arXiv:2503.10460)
13-gram    it shares 13 words in a row with one of them (Brown et al. 2020, arXiv:2005.14165, appendix C); this also
           hits set phrases of competitions, and the report says how many questions fall to it alone

A word is a run of letters and digits; case does not count. Test questions are compared without their options.
The dialogues of `eval.hub=[sgd5]` are not compared: no set that is decontaminated holds any, and what a user says there
is put together from a schema, so its words in a row are ours. data=sgd5 is divided by dialogue and service instead.

    data/decontaminated/NAME.jsonl         the questions that are left, in the form of data=jsonl: what is trained on
    data/decontaminated/NAME.report.json   counts, the benchmarks met (and those that were absent), and the file's hash

The report's hash goes into the manifest of every run. Which questions were left out is given by their ids alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from noisyrl.records import write_atomic
from noisyrl.spec import InputError
from noisyrl.tasks.base import Task
from noisyrl.tasks.hub import SOURCES, HubTask, public_benchmark
from noisyrl.tasks.hub_files import text_hash
from noisyrl.tasks.hub_train import TRAINING, VERSION, Candidate, paths

LONG, SHORT = 32, 13
RULES = ("exact", f"{LONG}-gram", f"{SHORT}-gram")
"""Strongest first; a question counts under the first that hits."""


@dataclass
class Index:
    """What is known of the test questions: hashes, and the benchmark each is from (the first that has it)."""

    exact: dict[str, str] = field(default_factory=dict)
    long: dict[int, str] = field(default_factory=dict)
    short: dict[int, str] = field(default_factory=dict)

    def add(self, text: str, benchmark: str) -> None:
        self.exact.setdefault(skeleton(text), benchmark)
        sequence = words(text)
        for grams, count in ((self.short, SHORT), (self.long, LONG)):
            for gram in _grams(sequence, count):
                grams.setdefault(gram, benchmark)

    def hit(self, text: str) -> tuple[str, str] | None:
        """(rule, benchmark) of the strongest rule that finds `text` among the test questions; None = none does."""
        if (benchmark := self.exact.get(skeleton(text))) is not None:
            return RULES[0], benchmark
        sequence = words(text)
        short = next((self.short[gram] for gram in _grams(sequence, SHORT) if gram in self.short), None)
        if short is None:  # then no 32 words are shared either
            return None
        long = next((self.long[gram] for gram in _grams(sequence, LONG) if gram in self.long), None)
        return (RULES[2], short) if long is None else (RULES[1], long)


def skeleton(text: str) -> str:
    """A text without digits, white space and case."""
    return re.sub(r"[\d\s]+", "", unicodedata.normalize("NFKC", text).casefold())


def words(text: str) -> list[str]:
    """Its runs of letters and digits, case aside."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def decontaminate(name: str, root: str = "data") -> dict[str, Any]:
    """Writes the two files of a training set and returns the report. InputError: its files are missing or damaged."""
    candidates = TRAINING[name].candidates(root)  # refuses missing files before anything is read
    tests = {test: public_benchmark(test, root) for test, source in SOURCES.items() if source.files.found(root)}
    index = Index()
    for test, task in _shown(tests.items(), "test sets", len(tests)):
        for question in task.questions:
            index.add(question.bare, test)
    counts, dropped, kept = _sift(candidates, index, name)
    data = "".join(json.dumps(candidate.row, ensure_ascii=False) + "\n" for candidate in kept)
    per_test = Counter(test for _, rule, test in dropped)
    report = {
        "version": VERSION,
        "train": name,
        "repo": TRAINING[name].files.repo,
        "files": {path.name: _file_hash(path) for path in TRAINING[name].files.found(root)},
        **counts,
        "kept": len(kept),
        "dropped": {rule: sum(found == rule for _, found, _ in dropped) for rule in RULES},
        "tests": {
            test: {"questions": len(task.questions), "sha256": questions_hash(task), "dropped": per_test[test]}
            for test, task in tests.items()
        },
        "absent": [test for test in SOURCES if test not in tests],
        "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
        "left_out": dropped,
    }
    data_path, report_path = paths(name, root)
    data_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(data_path, data)
    write_atomic(report_path, json.dumps(report, indent=1) + "\n")
    return report


def questions_hash(task: HubTask) -> str:
    """SHA-256 over the questions of a benchmark, in their order."""
    return text_hash("\n".join(text_hash(question.bare) for question in task.questions))


def refuse_unchecked(origin: Mapping[str, Any], benchmarks: Sequence[Task]) -> None:
    """InputError: the training questions of `origin` (of a manifest) were not compared with one of the benchmarks."""
    for task in (task for task in benchmarks if isinstance(task, HubTask)):  # dialogues are not compared
        known = origin["tests"].get(task.name)
        if known != questions_hash(task):
            what = "with none of its questions" if known is None else "with other questions than it has now"
            raise InputError(
                f"eval.hub: the training set {origin['set']} was compared {what} of {task.name}, so it may hold some: "
                "run `make decontaminate` before training, or leave the benchmark out"
            )


def summary(report: Mapping[str, Any]) -> str:
    """What a person wants to know of a report."""
    fallen = ", ".join(f"{count} {rule}" for rule, count in report["dropped"].items())
    lines = [
        f"{report['train']}: {report['kept']} of {report['rows']} questions are left; {fallen}; "
        f"{report['no_answer']} without an answer, {report['duplicates']} twice, {report['held_out']} held out"
    ]
    lines += [
        f"  {test:13} {found['questions']:6} questions, {found['dropped']} training questions left out for it"
        for test, found in report["tests"].items()
    ]
    if report["absent"]:
        lines.append(f"  not compared, not on this disk: {', '.join(report['absent'])} (make data)")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="noisyrl.tasks.decontaminate", description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="*", help=f"{', '.join(TRAINING)}; all that are on this disk unless given")
    parser.add_argument("--root", default="data", help="folder of the data sets (data)")
    given = parser.parse_args(arguments)
    try:
        if unknown := [name for name in given.name if name not in TRAINING]:
            raise InputError(f"no training set {unknown[0]!r}; there are: {', '.join(TRAINING)}")
        names = given.name or [name for name, source in TRAINING.items() if source.files.found(given.root)]
        if not names:
            commands = "\n".join(f"  {source.files.fetch(given.root)}" for source in TRAINING.values())
            raise InputError(f"no public training set in {given.root}/. Fetch one of them:\n{commands}")
        for name in names:
            print(summary(decontaminate(name, given.root)))
    except InputError as error:
        sys.exit(f"error: {error}")


def _sift(
    candidates: Iterable[Candidate], index: Index, name: str
) -> tuple[dict[str, int], list[tuple[str, str, str]], list[Candidate]]:
    """Counts of what was no candidate, (id, rule, benchmark) of each that is left out, and those that are kept."""
    counts = {"rows": 0, "no_answer": 0, "duplicates": 0, "held_out": 0}
    seen: set[str] = set()
    dropped, kept = [], []
    for candidate in _shown(candidates, name):
        counts["rows"] += 1
        identity = candidate.row["id"]
        if candidate.held_out:
            counts["held_out"] += 1
        elif not candidate.row["answer"]:
            counts["no_answer"] += 1
        elif identity in seen:
            counts["duplicates"] += 1
        elif hit := index.hit(candidate.bare):
            dropped.append((identity, *hit))
        else:
            kept.append(candidate)
        seen.add(identity)
    return counts, dropped, kept


def _grams(sequence: Sequence[str], count: int) -> Iterator[int]:
    """Hashes of all runs of `count` words; of this process alone, as Python salts them."""
    return (hash(tuple(sequence[i : i + count])) for i in range(len(sequence) - count + 1))


def _shown(items: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
    return tqdm(items, desc=what, total=total, unit=" questions" if total is None else "", disable=None)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
