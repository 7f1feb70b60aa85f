"""`rollout=fast`: a decoding loop of our own around the forward pass of any Hugging Face causal LM.

What it saves over `generate`: each prompt is read once for all its samples, finished rows leave the batch, a user's
reply is fed token by token while other rows go on sampling (nothing is read twice), the cache is written in place,
and one small transfer per step tells the host what was drawn. Models that `decoder` knows exactly take its shorter way
through their weights.
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

# Rows leave the batch when this share of it is over: moving rows costs time too.
_DEAD_SHARE = 1 / 16


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
    """N rows decoded together. A slot is a row's place in the batch; slots are refilled as rows end."""

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
        self.slots = np.arange(len(rows))  # [slots] -> row

    def run(self) -> None:
        """Decode until every row is over."""
        logits = self._prefill()
        self.is_end = np.isin(np.arange(logits.shape[1]), list(self.table.chat.ends))
        for t in range(self.table.max_tokens):
            drawn, logp = draw(logits, self.uniform[t, self.slots], self.table.temperature)
            tokens = self._record(t, drawn, logp)
            if self.done.all() or t + 1 == self.table.max_tokens:
                break
            logits = self.forward.step(self._drop_finished(tokens))
        for row in np.flatnonzero(~self.done).tolist():
            self.rows[row].turns.append(self.table.chat.text(self.tokens[self.turn_start[row] :, row]))
            self._close(row, self.table.max_tokens)

    def _prefill(self) -> Tensor:
        """Logits [N, V] of the first token, each distinct prompt read once."""
        first = {row.group: i for i, row in reversed(list(enumerate(self.rows)))}
        place = {group: i for i, group in enumerate(first)}
        source = torch.tensor([place[row.group] for row in self.rows], device=self.device)
        return self.forward.prefill([self.rows[i].context for i in first.values()], source)

    def _record(self, t: int, drawn: Tensor, logp: Tensor) -> Tensor:
        """Book token t of every slot; returns the tokens to feed: those drawn, or the user's where he is speaking."""
        slots, forced = self.slots, self.forced[t, self.slots]
        host = torch.stack([drawn.double(), logp.double()]).cpu().numpy()  # one transfer
        ids = host[0].astype(np.int64)
        if forced.any():
            ids = np.where(forced, self.tokens[t, slots], ids)
            drawn = torch.from_numpy(ids).to(self.device)
        self.tokens[t, slots] = ids
        self.logp[t, slots] = np.where(forced, 0, host[1])
        for row in slots[self.is_end[ids] & ~forced & ~self.done[slots]].tolist():
            self._end_turn(row, t)
        return drawn

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

    def _drop_finished(self, tokens: Tensor) -> Tensor:
        """Once enough rows are over, move the last live slots into their places and shorten the batch."""
        live = ~self.done[self.slots]
        count = int(live.sum())
        if len(live) - count < max(1, _DEAD_SHARE * len(live)):
            return tokens
        holes, movers = np.flatnonzero(~live[:count]), count + np.flatnonzero(live[count:])
        self.slots[holes] = self.slots[movers]
        self.slots = self.slots[:count]
        source, target = (torch.from_numpy(x).to(self.device) for x in (movers, holes))
        self.forward.move(source, target, count)
        tokens[target] = tokens[source]
        return tokens[:count]
