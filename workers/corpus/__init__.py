"""Raw text becomes training data: read, clean, de-duplicate, classify, augment, make negatives. Light to import: the web process does."""

from workers.corpus.verdicts import VERDICTS, Verdict, is_refusal, verdict_for

__all__ = ["VERDICTS", "Verdict", "is_refusal", "verdict_for"]
