"""When a student, or what is left of a pruned model, has learnt enough: its BLEU on held-out questions is its parent's.

The questions are not those by which the finished model is judged (`workers.compression.quality`): to stop when those are well answered would
flatter it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from workers.compression.quality import bleu_of, watched
from workers.compression.spec import CompressSpec
from workers.evaluation.questions import HeldOut
from workers.moe import ChatTokenizer, Decoder, save_model

FEWEST = 20  # questions by which a run may be ended


@dataclass(frozen=True)
class Goal:
    spec: CompressSpec
    tokenizer: ChatTokenizer
    rows: Sequence[HeldOut]

    @classmethod
    def of(cls, spec: CompressSpec, tokenizer: ChatTokenizer) -> "Goal | None":
        """None where the whole length is asked for, or too few questions are left over to go by."""
        rows = watched(spec) if spec.until_good else []
        return cls(spec, tokenizer, rows) if len(rows) >= FEWEST else None

    @cached_property
    def least(self) -> float:
        """The BLEU to be reached: all of its parent's. What may be lost is left to INT8, and to the chance of which questions were asked: a student that
        was stopped half a point below lost 2.5 on all of them, since a model at a high learning rate scatters from trial to trial."""
        return bleu_of(self.spec.model_folder, self.rows, self.spec)

    def bleu(self, model: Decoder) -> float:
        folder = self.spec.work_folder / "watched"
        try:
            save_model(folder, model, self.tokenizer, "")
            return bleu_of(folder, self.rows, self.spec)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
