"""One full RL step of GRPO, ours against TRL's: 16 prompts x 8 samples, reward, one update.

Both read the same model folder, prompts, lengths and rewards, in float32 on one thread, without a reference model. TRL
runs as its documentation says, less what it does beyond the comparison: no checkpointing of activations, no logging,
no saving. It has a process of its own, since what ours asks of the C library's allocator holds for a whole process.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench import frame, peers, stage

SAMPLES, LR = 8, 1e-6


def measure(quick: bool) -> frame.Part:
    """GRPO steps, by model and length."""
    part = frame.Part("step", "A full GRPO step, ours against TRL's")
    if missing := peers.missing():
        part.note(f"TRL's side skipped: {missing}")
    prompts, tokens, rounds = (4, 16, 3) if quick else (16, 64, 4)
    with TemporaryDirectory() as at:
        for size in ("tiny",) if quick else ("tiny", "small"):
            for label, end in (("full length", 0.0), ("ends by chance", stage.ENDS)):
                folder = stage.model_folder(Path(at), size, end=end)
                _case(part, folder, f"{size}, {label}", prompts=prompts, tokens=tokens, rounds=rounds)
            if not quick:  # what runs of the testbed start from
                warm = stage.warm_started(Path(at), size)
                _case(part, warm, f"{size}, warm-started", prompts=prompts, tokens=tokens, rounds=rounds)
    return part


def _case(part: frame.Part, folder: Path, case: str, *, prompts: int, tokens: int, rounds: int) -> None:
    sizes = [f"trainer.prompts={prompts}", f"rollout.samples={SAMPLES}", f"rollout.max_tokens={tokens}"]
    words = ["algo=grpo", f"algo.lr={LR}", *sizes, "trainer.steps=1000"]
    ours = stage.loop(stage.on(folder, *words))
    if peers.missing():
        sides = frame.alternate(case, {"ours": lambda: stage.step(ours)}, rounds)
        part.add(list(sides.values()))
        return
    record = frame.Record(case, ["TRL", "ours"])
    met = [prompt for number in range(rounds + 1) for prompt in stage.prompts_of(ours, number)]
    theirs = peers.GrpoElsewhere(folder, met, words, rounds + 1)
    for _ in range(rounds + 1):
        record.take("TRL", *theirs.step())
        with record.turn("ours") as work:
            work.append(stage.step(ours))
    theirs.close()
    part.add(record.list())
    trl, own = record.sides["TRL"], record.sides["ours"]
    per_token = [a / b for a, b in zip(own.rates(), trl.rates(), strict=True)]
    part.compare(f"{case}: our tokens per CPU second / TRL's", per_token, "higher", bar=2.0)
    part.compare(f"{case}: CPU time of a step, TRL / ours", frame.ratios(trl, own), "higher", bar=2.0)
