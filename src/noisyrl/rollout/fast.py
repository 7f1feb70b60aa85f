"""`rollout=fast`: a decoding loop of our own around the forward pass of any Hugging Face causal LM.

What it saves over `generate`: what samples of a prompt have in common is read once, the prompt and as much of their
responses as they say alike; finished rows leave the batch, a user's reply is fed token by token while other rows go on
sampling (nothing is read twice), the cache is written in place, and one small transfer per step tells the host what was
drawn. Models that `decoder` knows exactly take its shorter way through their weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from noisyrl import rng
from noisyrl.models.base import LanguageModel
from noisyrl.rollout.base import Sampler
from noisyrl.rollout.decoder import Decoder, decodable
from noisyrl.rollout.draw import draw
from noisyrl.rollout.forward import Forward, layer_kinds
from noisyrl.rollout.rows import Row, Table, chunks, collate, open_chat, open_rows, sampling
from noisyrl.spec import InputError, spec
from noisyrl.tasks.base import Task
from noisyrl.types import Prompt, Rollout

# Slots are given up when this share of them is empty: moving them costs time too.
_EMPTY_SHARE = 1 / 16


@spec
class FastSampler(Sampler):
    """Batched decoding with early exit of finished rows. Models with attention layers only."""

    def __call__(self, lm: LanguageModel, task: Task, prompts: Sequence[Prompt], *, seed: int, step: int) -> Rollout:
        """InputError: the model has layers other than attention, or the tokenizer no chat template."""
        kinds = layer_kinds(lm.model)
        if not kinds <= {"full_attention", "sliding_attention"}:
            raise InputError(f"rollout=fast knows attention layers only, the model has {sorted(kinds)}: set rollout=hf")
        thinking = self.enable_thinking
        table = Table(lm, task, open_chat(lm, thinking=thinking), self.max_tokens, self.temperature)
        rows = open_rows(lm, prompts, self.samples, seed=seed, step=step, thinking=thinking)
        with sampling(lm):
            for chunk in chunks(rows, self.batch_rows):
                _Decoding(table, chunk).run()
        return collate(rows, lm)


class _Decoding:
    """N rows decoded together. A slot is a place in the batch; rows of a prompt share one until they differ."""

    def __init__(self, table: Table, rows: Sequence[Row]) -> None:
        self.table, self.rows = table, rows
        self.device = table.lm.model.device
        make = Decoder if decodable(table.lm.model) else Forward
        self.forward = make(table.lm.model, table.max_tokens)
        shape = (table.max_tokens, len(rows))
        self.tokens = np.zeros(shape, np.int64)  # forced tokens are written ahead of time
        self.forced = np.zeros(shape, bool)
        self.logp = np.zeros(shape, np.float32)
        self.turn_start = np.zeros(len(rows), np.int64)
        self.done = np.zeros(len(rows), bool)
        keys = np.array([row.key for row in rows], np.uint64)
        self.uniform = rng.counter_uniforms(keys, np.arange(table.max_tokens)[:, None])
        self.live = np.arange(len(rows))  # rows that are not over, in the order of their slots
        self.slot = np.zeros(len(rows), np.int64)  # of each row
        self.shared = True  # whether any slot may have several live rows

    def run(self) -> None:
        """Decode until every row is over."""
        logits = self._prefill()
        self.is_end = np.isin(np.arange(logits.shape[1]), list(self.table.chat.ends))
        for t in range(self.table.max_tokens):
            self._record(t, *self._draw(t, logits))
            if not len(self.live) or t + 1 == self.table.max_tokens:
                break
            logits = self.forward.step(self._feed(t))
        for row in self.live.tolist():
            self.rows[row].turns.append(self.table.chat.text(self.tokens[self.turn_start[row] :, row]))
            self._close(row, self.table.max_tokens)

    def _prefill(self) -> Tensor:
        """Logits [slots, V] of the first token, one slot for each prompt."""
        groups = {row.group: row.context for row in self.rows}
        place = {group: i for i, group in enumerate(groups)}
        self.slot[:] = [place[row.group] for row in self.rows]
        self.live = np.argsort(self.slot, kind="stable")
        return self.forward.prefill(list(groups.values()), len(self.rows))

    def _draw(self, t: int, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Token t of every live row and its log-probability, given logits [slots, V]."""
        slot, uniform = self.slot[self.live], self.uniform[t, self.live]
        if self.shared:
            logits = logits.index_select(0, torch.from_numpy(slot).to(self.device))
            slot = np.arange(len(slot))
        every = np.zeros(len(logits))  # for empty slots too: cheaper than leaving them out
        every[slot] = uniform
        tokens, logp = draw(logits, every, self.table.temperature)
        host = torch.stack([tokens.double(), logp.double()]).cpu().numpy()  # one transfer
        return host[0, slot].astype(np.int64), host[1, slot]

    def _record(self, t: int, drawn: np.ndarray, logp: np.ndarray) -> None:
        """Book token t of every live row: the one drawn, or the user's where he is speaking. Some rows end with it."""
        live, forced = self.live, self.forced[t, self.live]
        ids = np.where(forced, self.tokens[t, live], drawn)
        self.tokens[t, live] = ids
        self.logp[t, live] = np.where(forced, 0, logp)
        ended = live[self.is_end[ids] & ~forced]
        for row in ended.tolist():
            self._end_turn(row, t)
        self.live = live[~self.done[live]]

    def _end_turn(self, row: int, t: int) -> None:
        """Token t of the row ended its turn: the user's reply is laid out ahead, or the row is over."""
        turn = self.tokens[self.turn_start[row] : t, row]
        reply = self.table.end_turn(self.rows[row], turn, t + 1)
        if not reply:
            self._close(row, t + 1)
            return
        self.turn_start[row] = t + 1 + len(reply)
        self.tokens[t + 1 : self.turn_start[row], row] = reply
        self.forced[t + 1 : self.turn_start[row], row] = True

    def _close(self, row: int, length: int) -> None:
        self.done[row] = True
        entry = self.rows[row]
        entry.tokens = self.tokens[:length, row].copy()
        entry.chosen = ~self.forced[:length, row]
        entry.logp = self.logp[:length, row].copy()

    def _feed(self, t: int) -> Tensor:
        """Tokens [slots] to go on with after token t was booked."""
        slots = self.forward.slots
        if self.shared or slots - len(self.live) >= max(1, _EMPTY_SHARE * slots):
            self._arrange(t)
        tokens = np.zeros(self.forward.slots, np.int64)
        tokens[self.slot[self.live]] = self.tokens[t, self.live]
        return torch.from_numpy(tokens).to(self.device)

    def _arrange(self, t: int) -> None:
        """One slot for rows that have said the same up to token t; slots without a row are filled or given up."""
        vocabulary, slots = len(self.is_end), self.forward.slots
        said = self.slot[self.live] * vocabulary + self.tokens[t, self.live]
        order = np.argsort(said, kind="stable")
        rows, said = self.live[order], said[order]
        new = np.diff(said, prepend=-1) > 0
        source = said[new] // vocabulary
        count = len(source)
        if slots - count < max(1, _EMPTY_SHARE * slots):
            count = max(slots, count)
        # The first of those that part stays where it is, if there is such a slot from now on.
        target = np.where(np.diff(source, prepend=-1) > 0, source, count)
        moving, empty = target >= count, np.ones(count, bool)
        empty[target[~moving]] = False
        target[moving] = np.flatnonzero(empty)[: moving.sum()]
        if moving.any() or count != slots:
            copied, onto = (torch.from_numpy(x[moving]).to(self.device) for x in (source, target))
            self.forward.move(copied, onto, count)
        slot = target[np.cumsum(new) - 1]
        self.slot[rows] = slot
        self.live = rows[np.argsort(slot, kind="stable")]
        self.shared = len(source) < len(rows)
