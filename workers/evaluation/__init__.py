"""How good a model's answers are: BLEU on held-out questions, refusals of held-out falsehoods, speed."""
