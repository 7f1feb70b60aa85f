"""The advantage of every token of one response, as the algorithm trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from tokenizers import Tokenizer

from analysis.figures.drawing import PAGES, Drawn, chunks, left_out, sheet
from analysis.figures.groups import Group, Nothing, by_setting
from noisyrl.rollouts import step_files

_PER_LINE, _LINES = 16, 3  # tokens of a line, lines of a response
_RESPONSES = 4  # of a page
_CAPTION = (
    "Stored rollouts, of the last step that was kept in the run with the lowest seed: the first prompt with both a "
    "right and a wrong response, one of each. Each box is a token with its advantage; dark blue with + = encouraged, "
    "dark red with - = discouraged, relative to the largest advantage shown."
)


@dataclass(frozen=True)
class _Said:
    """A response."""

    group: Group
    step: int
    uid: str
    clean: float
    tokens: Sequence[str]
    advantages: np.ndarray  # of the policy's tokens; NaN for the others

    @property
    def title(self) -> str:
        right = "right" if self.clean > 0.5 else "wrong"
        return f"{self.group.method}, step {self.step}: {right} by the clean grader ({self.uid})"


def draw(groups: Sequence[Group]) -> Drawn:
    """Nothing: no run has stored rollouts with a tokenizer to read them by."""
    found = {group: said for group in groups if (said := _said(group))}
    if not found:
        raise Nothing(
            "no run has rollouts/step_*.npz with advantages beside a checkpoint: trainer.store_rollouts_every=20 "
            "stores them"
        )
    parts = [
        part
        for shown in by_setting(found).values()
        for part in chunks([said for group in shown for said in found[group]], _RESPONSES)
    ]
    pages = []
    for part in parts[:PAGES]:
        title = f"Advantages, token by token: {part[0].group.setting}"
        lines = max(min(_LINES, -(-len(said.tokens) // _PER_LINE)) for said in part)
        figure, axes = sheet(title, len(part), 1, size=(12, 0.55 * lines + 0.45))
        largest = max(float(np.nanmax(np.abs(said.advantages))) for said in part) or 1.0
        for panel, said in zip(axes[:, 0], part, strict=True):
            _strip(panel, said, largest, lines)
        pages.append(figure)
    rows = [
        said.group.named
        | {"step": said.step, "uid": said.uid, "clean": said.clean, "place": i, "token": token, "advantage": value}
        for responses in found.values()
        for said in responses
        for i, (token, value) in enumerate(zip(said.tokens, said.advantages, strict=True))
    ]
    return Drawn(pages, pd.DataFrame(rows), _CAPTION + left_out(len(parts)))


def _said(group: Group) -> list[_Said]:
    """A right and a wrong response to one prompt; empty if nothing is stored."""
    folder = group.runs[0].folder
    tokenizers = sorted(folder.glob("checkpoints/*/tokenizer.json"))
    for step, file in reversed(step_files(folder).items()):
        with np.load(file) as found:  # allow_pickle is off
            names = ("uid", "clean_B", "group_B", "tokens_BL", "mask_BT", "advantage_BT")
            if not tokenizers or any(name not in found for name in names):
                continue
            uid, clean_B, group_B, tokens_BL, mask_BT, advantage_BT = (found[name] for name in names)
        if len(advantage_BT) != len(uid):  # some left the batch, and the file does not say which
            continue
        pair = _pair(clean_B, group_B, advantage_BT)
        tokenizer = Tokenizer.from_file(str(tokenizers[-1]))
        return [
            _Said(group, step, str(uid[row]), float(clean_B[row]),
                  *_read(tokenizer, tokens_BL[row], mask_BT[row], advantage_BT[row])) for row in pair
        ]  # fmt: skip
    return []


def _pair(clean_B: np.ndarray, group_B: np.ndarray, advantage_BT: np.ndarray) -> list[int]:
    """Rows of a right and a wrong response of the first group that has both, else the row that moved most."""
    for name in dict.fromkeys(group_B.tolist()):
        right, wrong = (np.flatnonzero((group_B == name) & side) for side in (clean_B > 0.5, clean_B <= 0.5))
        if len(right) and len(wrong):
            return [int(right[0]), int(wrong[0])]
    return [int(np.abs(advantage_BT).max(axis=1).argmax())]


def _read(
    tokenizer: Tokenizer, tokens_L: np.ndarray, mask_T: np.ndarray, advantage_T: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """The response's tokens as text up to the policy's last one, and their advantages."""
    end = int(np.flatnonzero(mask_T).max(initial=-1)) + 1
    response = tokens_L[len(tokens_L) - len(mask_T) :][:end]
    texts = [tokenizer.decode([int(token)], skip_special_tokens=False) for token in response]
    return texts, np.where(mask_T, advantage_T, np.nan)[:end]


def _strip(panel: Axes, said: _Said, largest: float, lines: int) -> None:
    scale, colours = TwoSlopeNorm(0, -largest, largest), matplotlib.colormaps["RdBu"]
    for place, (token, value) in enumerate(zip(said.tokens, said.advantages, strict=True)):
        line, column = divmod(place, _PER_LINE)
        if line >= lines:
            break
        known = not np.isnan(value)
        colour = colours(scale(value)) if known else "#eeeeee"
        panel.add_patch(matplotlib.patches.Rectangle((column, line), 1, 1, facecolor=colour, edgecolor="white"))
        ink = "white" if known and abs(value) > 0.6 * largest else "black"
        panel.text(column + 0.5, line + 0.4, _visible(token), ha="center", va="center", fontsize=8, color=ink)
        panel.text(column + 0.5, line + 0.8, f"{value:+.2f}" if known else "user", ha="center", va="center",
                   fontsize=6, color=ink)  # fmt: skip
    more = len(said.tokens) - lines * _PER_LINE
    panel.set_title(said.title + (f"; {more} more tokens" if more > 0 else ""), loc="left")
    panel.set(xlim=(0, _PER_LINE), ylim=(lines, 0))
    panel.axis("off")


def _visible(token: str) -> str:
    shown = token.replace("\n", "⏎").replace("$", r"\$")
    return shown if shown.strip() else "␣" * max(1, len(shown))
