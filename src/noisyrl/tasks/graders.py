"""Rules that compare a response with the known answer. Pure: (text, answer) -> Grade.

A response without an answer scores 0; one that could not be judged scores None, never 0. Thinking is not part of an
answer: everything up to the last `</think>` is ignored, and a response cut while thinking has no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Protocol, runtime_checkable

from noisyrl.spec import InputError
from noisyrl.tasks.verify import VerifyCrash, VerifyTimeout, equivalent
from noisyrl.types import Grade, Prompt

_BOX = re.compile(r"\\boxed\s*\{")
_BOX_WORD = re.compile(r"\\boxed(?![A-Za-z])")
# A line that states the answer; markdown around the words is allowed, words before them are not.
_ANSWER_LINE = re.compile(r"^[ \t*_#>-]*(?:the |final |correct )*answer(?: is)?[ \t*_]*[:：][ \t]*(.*)$", re.I | re.M)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")
_OPENING = re.compile(r"^(?:(?:option|choice)\b|[:\s(\[{<\"'`“‘])+", re.I)
# One letter, then nothing, or what may follow a letter before the option's text: "C. Paris", "C - Paris", "C (Paris)".
_LETTER = re.compile(r"([A-Za-z])(?:$|[)\]}>]|[.:,;!\"'`”’]+(?![A-Za-z0-9])|\s*<\||\s+[-–—]\s|\s+\()")
# What follows the letter is a second option: "C or D", "c, d", "(C)(D)"; not so "C, a city", "C. A city", "C, I think".
_ANOTHER = re.compile(
    r"[\s).:,;(\[]*(?:and\b|or\b|nor\b|[/&,;+])[\s(\[]*(?:[A-HJ-Z]\b|[A-Ja-j](?=\s*(?:$|[)\].,;:/&+]|and\b|or\b)))"
    r"|[\s).:,;(\[]*[A-Ja-j][)\]]"
)
_STYLED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|mbox|emph|boldsymbol|bm|math(?:rm|bf|it|sf|tt|normal))\s*\{((?:[^{}\\]|\\[$%&#])*)\}"
)
_BOLD = re.compile(r"\\(?:boldsymbol|bm|mathbf)\s*\{")  # of formulas; what is set as text stays text for Math-Verify
_ABOUT = re.compile(
    r"^\s*(?:\\(?:approx|simeq)(?![A-Za-z])|\\text\s*\{\s*(?:about|approximately)\s*\}"
    r"|(?:\\text\s*\{\s*)?(?:the )?(?:final )?answer(?: is)?\s*:?\s*(?:\}|:)\s*)",
    re.I,
)
_AND_OR = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}")
_BLANK = r"(?:(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s)"
_BLANKS = re.compile(rf"{_BLANK}+")
_APART = re.compile(r"(?<![\d^_.])\d[\d.]* \d")  # 1 2, which is neither 12 nor a product
# \text{ m/s}^2, \mathrm{C} or a plain m/s^2 at the end of an answer that begins with a number.
_SYMBOL = (
    r"(?:(?:[kMGTmnµμ]?(?:m|s|g|J|eV|W|V|A|C|K|N|Hz|Pa|L|T|F|mol|pc|rad)|cm|min|h|hr|deg|erg|AU|ly|yrs?)(?![A-Za-z])"
    r"|(?:degree|second|minute|hour|day|year)s?(?![A-Za-z]))"
)
_POWER = r"(?:\^\{?-?\d\}?)?"
_UNIT = re.compile(
    rf"(?<=[\d}}]){_BLANK}*(?:\\(?:text|mathrm|textbf)\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}{_POWER}"
    rf"(?:{_BLANK}|/|\\cdot)*|(?<![A-Za-z]){_SYMBOL}{_POWER}(?:{_BLANK}|[/*]|\\cdot)*)+$"
)
_NAMED = re.compile(r"^[A-Za-z\\][\w\\{} ,'()]*(?:=|\\(?:approx|simeq|sim)(?![A-Za-z]))")
# Signs of a keyboard or a word processor, and the LaTeX they stand for.
_DASHES = dict.fromkeys(map(ord, "−–‐‑‒"), "-")
_SIGNS = _DASHES | str.maketrans(
    {
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∞": r"\infty ", "°": r"^\circ ",
        "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∅": r"\emptyset ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}",
        "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}", "\u200b": "", "\u2060": "", "\ufeff": "",
    }
)  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "₀₁₂₃₄₅₆₇₈₉"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY, _YEAR = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{3,4})"
_DATES = (
    re.compile(rf"(?:on )?(?:the )?{_DAY}(?: of)? {_MONTH},? {_YEAR}"),
    re.compile(rf"(?:on )?{_MONTH} {_DAY},? {_YEAR}"),
    re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"),
)
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTED)}
# What stands in formulas and names of things where every sign counts: C++, x^2, a/b, H_2O.
_FORMULA = re.compile(r"[\\^_=<>+*/|#{}\[\]]|\d-|(?<=[a-z])\(")
_TINY = Fraction(1, 1000)
_LAYERS = 4  # around a formula: $, bold, a full stop; nobody writes more
_NUMERAL = re.compile(r"(\d[\dA-Fa-f]*)(?:_\{?(\d+)\}?)?")


def math(text: str, answer: str) -> Grade:
    r"""math@v3: the last `\boxed{...}` against `answer` (LaTeX, with or without $ or \boxed).

    The last box alone counts, and must be closed and not empty. Integers, fractions, equal strings, percentages (50 %
    is 50 and 0.5: golds say it either way) and numerals with a base (which the question may give instead) are decided
    here; the rest by Math-Verify in a process with a time limit (status "timeout" or "error" if that fails).
    """
    found = last_box(_said(text))
    if not found:
        return Grade(0.0)
    try:
        return Grade(float(_same_mathematics(_gold(answer), found)), extracted=found)
    except VerifyTimeout:
        return Grade(None, "timeout", found)
    except VerifyCrash:
        return Grade(None, "error", found)
    except RuntimeError as error:  # Math-Verify cannot be imported: no answer could be judged, so nothing is
        raise InputError(str(error)) from error


def letter(text: str, answer: str) -> Grade:
    r"""letter@v3: the option named by the last line `Answer: X`, else by the last `\boxed{X}`; case is ignored.

    ValueError: `answer` is not one letter.
    """
    gold = one_letter(answer)
    if gold is None:
        raise ValueError(f"the letter grader needs one letter as the answer, got {answer!r}")
    said = _said(text)
    lines = [one_letter(line) for line in _ANSWER_LINE.findall(said)]
    stated = [found for found in lines if found is not None]
    found = stated[-1] if stated else one_letter(last_box(said) or "")
    return Grade(float(found == gold), extracted=found)


def exact(text: str, answer: str) -> Grade:
    """exact@v1: the text after the last line `Answer:` (the whole text without one) equals `answer`.

    Case, white space and quotes, emphasis and full stops at the ends do not count; signs and brackets do.
    """
    said = _said(text)
    found = _plain(said if (stated := _stated(said)) is None else stated)
    return Grade(float(found == _plain(answer)), extracted=found) if found else Grade(0.0)


def freetext(text: str, answer: str) -> Grade:
    r"""freetext@v2: the text after the last line `Answer:`, else the last `\boxed{...}`, else the whole text.

    More forgiving than `exact`: a number, a date or a formula may be spelt in any usual way (1,234; 20 July 1969;
    \frac12), and in words neither articles, accents nor punctuation count. What is not the gold in other clothes is
    wrong: neither a longer answer that contains it nor one that means the same.
    """
    said = _said(text)
    stated = _stated(said)
    found = _plain(last_box(said) or said if stated is None else stated)
    return Grade(float(_undressed(found) == _undressed(answer)), extracted=found) if found else Grade(0.0)


def rounded(text: str, answer: str) -> Grade:
    """rounded@v3: as `math`, but two numbers need only agree to 1 %: golds of physics questions are rounded.

    `answer` may hold several accepted golds, one a line. A unit after the number and a name before it ("v = ") are
    passed over: the question asks for them, and golds come without.
    """
    grades = [_rounded(text, gold) for gold in answer.splitlines() if gold.strip()]
    best = [grade for grade in grades if grade.score == 1.0]
    unsettled = [grade for grade in grades if grade.score is None]
    return (best or unsettled or grades or [math(text, answer)])[0]


GRADERS: dict[str, Callable[[str, str], Grade]] = {
    "math": math, "rounded": rounded, "letter": letter, "exact": exact, "freetext": freetext
}  # fmt: skip
VERSIONS = {
    "math": "math@v3", "rounded": "rounded@v3", "letter": "letter@v3", "exact": "exact@v1", "freetext": "freetext@v2"
}  # fmt: skip
"""Written beside every score: a rule that changes gets a new version."""


@runtime_checkable
class RuleGraded(Protocol):
    """A task that grades with these rules, and says which; a task with a rule of its own need not."""

    def graded_by(self, prompt: Prompt) -> str:
        """One of VERSIONS."""


def spelling(answer: str) -> str:
    """One spelling for answers that are the same number or the same text; formulas are not simplified."""
    bare = _latex(answer)
    number = _rational(bare)
    return bare.casefold() if number is None else str(number)


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced; None if the last one is not closed or there is none."""
    words = list(_BOX_WORD.finditer(text))
    if not words or not (opening := _BOX.match(text, words[-1].start())):
        return None
    end = _closing(text, opening.end())
    return None if end is None else text[opening.end() : end].strip()


def _closing(text: str, position: int) -> int | None:
    """Where the brace opened just before `position` is closed; None if it is not."""
    depth = 1
    while position < len(text):
        mark = text[position]
        if mark == "\\":
            position += 1  # \{ and \} are signs, not braces
        depth += (mark == "{") - (mark == "}")
        if depth == 0:
            return position
        position += 1
    return None


def one_letter(text: str) -> str | None:
    """The option a short text names ("C", "(c)", "**C.** Paris", "\\text{C}"), in upper case; None if it names none."""
    bare = unicodedata.normalize("NFKC", _WRAPPED.sub(r"\1", _WRAPPED.sub(r"\1", text))).replace("\u200b", "")
    bare = _OPENING.sub("", re.sub(r"(?:[*_$\s]|\\[()\[\]])+", " ", bare).strip()).strip()
    found = _LETTER.match(bare)
    return None if found is None or _ANOTHER.match(bare, found.end(1)) else found[1].upper()


def _said(text: str) -> str:
    """The response without its thinking."""
    after = text.rpartition("</think>")[2]
    return "" if "<think>" in after else after


def _stated(said: str) -> str | None:
    """What the last line `Answer:` states, on that line or after it; None = there is no such line."""
    lines = list(_ANSWER_LINE.finditer(said))
    return ((lines[-1][1].strip(" *_") and lines[-1][1]) or said[lines[-1].end() :]) if lines else None


def _rounded(text: str, gold: str) -> Grade:
    grade = math(text, gold)
    if grade.score == 1.0 or grade.extracted is None:
        return grade
    said = _UNIT.sub("", _NAMED.sub("", _plainer(grade.extracted)))
    known, found = (_value(_latex(text)) for text in (_plainer(_gold(gold)), _plainer(said)))
    if known is None or found is None:
        return grade
    return Grade(float(abs(known - found) <= abs(known) / 100), extracted=grade.extracted)


def _undressed(text: str) -> str:
    """One form for the spellings of a free answer that `freetext` does not tell apart."""
    bare = _WRAPPED.sub(r"\1", _WRAPPED.sub(r"\1", _plain(text.translate(_DASHES))))
    written = spelling(_NUMBER_WORDS.get(bare, bare))
    if _rational(written) is not None:
        return written
    if date := _date(bare):
        return date
    if _FORMULA.search(bare):
        return written
    letters = unicodedata.normalize("NFKD", bare.replace("&", " and ").replace("%", " percent "))
    letters = re.sub(r"['`’‘]", "", "".join(mark for mark in letters if not unicodedata.combining(mark)))
    letters = re.sub(r"(?<=\d),(?=\d{3})", "", letters)
    # A minus sign and a decimal point are not punctuation.
    words = re.sub(r"(?!(?<!\S)-\S)(?!(?<=\d)\.\d)[^\w\s]", " ", letters).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def _date(text: str) -> str | None:
    """2001-02-03 for a text that is a whole date with the month in words, or ISO; None for any other text."""
    for pattern in _DATES:
        if found := pattern.fullmatch(text):
            month = found["month"]
            number = int(month) if month.isdigit() else _MONTHS.index(month[:3]) + 1
            return f"{int(found['year']):04}-{number:02}-{int(found['day']):02}"
    return None


def _plain(text: str) -> str:
    joined = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return joined.strip(" \"'`*_“”‘’").rstrip(" .,;:!?。\"'`*_“”‘’")


def _gold(answer: str) -> str:
    boxed = last_box(answer)
    return answer.strip() if boxed is None else boxed


def _same_mathematics(gold: str, found: str) -> bool:
    gold, found = _plainer(gold), _plainer(found)
    left, right = _latex(gold), _latex(found)
    if left == right:
        return True
    decided = _same_number(left, right)
    if decided is not None:
        return decided
    if _is_word(left) or _is_word(right):
        return left.casefold() == right.casefold()
    if _is_chain(right) or _APART.search(left) or _APART.search(right):
        return False
    return equivalent(_scientific(gold), _scientific(found))


def _same_number(left: str, right: str) -> bool | None:
    """Whether two plain numbers are equal; None if that is not for this function to say."""
    if left.endswith("%") or right.endswith("%"):
        return _same_percentage(left, right)
    first, second = _NUMERAL.fullmatch(left), _NUMERAL.fullmatch(right)
    if first and second and (first[2] or second[2]):
        digits = first[1].upper().lstrip("0") == second[1].upper().lstrip("0")
        return digits and (first[2] or second[2]) == (second[2] or first[2])
    one, other = _value(left), _value(right)
    if one is None or other is None:
        return None
    if one == other:
        return True
    if not re.search(r"[.eE^]", left + right):
        return False  # two whole numbers or fractions; decimals may be rounded, Math-Verify knows how far
    if min(abs(one), abs(other)) < _TINY:
        return abs(one - other) <= _TINY**2 * abs(one)  # Math-Verify keeps six decimals, of which nothing is left here
    return None


def _same_percentage(left: str, right: str) -> bool | None:
    """At least one ends with %: 50 % is 50 %, 50 and 0.5. None: not plain numbers."""
    one, other = (_rational(re.sub(r"\\?%$", "", text)) for text in (left, right))
    if one is None or other is None:
        return None
    if one == other:
        return True
    return (not right.endswith("%") and one / 100 == other) or (not left.endswith("%") and one == other / 100)


def _plainer(text: str) -> str:
    """One LaTeX spelling of what Math-Verify does not read, or not as it is printed; nothing around the formula."""
    bare = _BLANKS.sub(" ", _ascii(text))
    bare = re.sub(r"\\degree(?![A-Za-z])", r"^\\circ ", bare).replace(r"\varnothing", r"\emptyset")
    bare = re.sub(r"\\text\s*\{\s*per ?cent\s*\}", r"\\%", _AND_OR.sub(",", _ABOUT.sub("", bare)))
    bare = re.sub(r"\\([dtc]?frac|[dt]?binom)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}", bare)  # \frac172 is 1/7 and a 2
    bare = re.sub(r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}", bare)  # 2 3/4 is no 23/4
    for _ in range(_LAYERS):
        bare = _unwrapped(bare)
    return bare


def _unwrapped(text: str) -> str:
    r"""Without blanks and punctuation at the ends, or without one \mathbf{...}, $...$ or \[...\] around all of it."""
    bare = re.sub(r"\\(?:checkmark|\\)?$", "", text.rstrip(" .,;")).strip().rstrip(" .,;")
    if shown := re.fullmatch(r"\$+([^$]*)\$+|\\\[(.*)\\\]|\\\((.*)\\\)", bare, re.S):
        return next(part for part in shown.groups() if part is not None)
    bold = _BOLD.match(bare)
    return bare[bold.end() : -1] if bold and _closing(bare, bold.end()) == len(bare) - 1 else bare


def _ascii(text: str) -> str:
    """LaTeX for signs that are typed as they look: a real minus, 2π, √2, x², ½, full-width digits."""
    if text.isascii():
        return text
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\w+))", r"\\sqrt{\1\2}", text)
    for sign, digits in (("^", _RAISED), ("_", _LOWERED)):  # which `_normal` then makes plain
        text = re.sub(f"([{digits}]+)", rf"{sign}{{\1}}", text)
    return "".join(map(_whole, text.translate(_SIGNS)))


def _whole(sign: str) -> str:
    """½ as a fraction; any other sign in its plain form."""
    plain = _normal(sign)
    return re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", plain) if len(plain) > 1 else plain


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


def _latex(text: str) -> str:
    """Spelling that carries no meaning removed: delimiters, spaces, sizes, styles, separators of thousands."""
    bare = _ascii(text).strip().strip("$").replace("{,}", ",")
    bare = re.sub(_STYLED, r"\1", bare)
    bare = re.sub(r"\\[dt]frac", r"\\frac", bare)
    bare = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!", "", bare)
    bare = _BLANKS.sub(" ", bare).strip().rstrip(".")
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[+-]?[1-9]\d{0,2}(?: \d{3})+(?:\.[\d ]+)?", bare):
        bare = bare.replace(",", "").replace(" ", "")
    # A space between digits is kept: 1 2 is not 12.
    return re.sub(r"(?<!\d) | (?!\d)|(?<=\.\d{3}) ", "", bare)


def _rational(text: str) -> Fraction | None:
    """The number a short, plain text writes: 42, -042, 3.50, 1e-3, 3/4, -\\frac{3}{4}; None for anything else."""
    if len(text) > 60:
        return None
    if re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?", text):
        return Fraction(Decimal(text))
    if repeating := re.fullmatch(r"([+-]?)(\d*\.(\d*))\\(?:overline|bar)\{(\d+)\}", text):
        sign, before, places, period = repeating.groups()
        tail = Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
        return (Fraction(Decimal(f"0{before}")) + tail) * (-1 if sign == "-" else 1)
    parts = re.fullmatch(r"([+-]?)(?:\\frac\{(\d+)\}\{(\d+)\}|\\frac(\d)(\d)|(\d+)/(\d+))", text)
    if not parts:
        return None
    above, below = (int(part) for part in parts.groups()[1:] if part)
    return None if below == 0 else Fraction(above, below) * (-1 if parts[1] == "-" else 1)


def _value(text: str) -> Fraction | None:
    r"""As `_rational`, also of 1.6\times10^{-19}."""
    found = re.fullmatch(r"(?:([+-]?[\d.]+)(?:\\times|\\cdot))?10\^(?:\{([+-]?\d{1,3})\}|(\d))", text)
    if not found:
        return _rational(text)
    factor = _rational(found[1] or "1")
    return None if factor is None else factor * Fraction(10) ** int(found[2] or found[3])


def _is_word(text: str) -> bool:
    # Math-Verify reads a word as a product of its letters, so that "odd" would equal "dod".
    return re.fullmatch(r"[A-Za-z]{4,}", text) is not None


def _is_chain(text: str) -> bool:
    """x=1=2=3 would be accepted for 3."""
    return any(len(re.findall(r"(?<![<>!:])=", part)) > 1 for part in re.split(r"[,;]", text))


def _scientific(text: str) -> str:
    return re.sub(r"(?<![A-Za-z\\\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![A-Za-z\d])", r"\1\\times 10^{\2}", text)
