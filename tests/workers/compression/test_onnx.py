from contextlib import closing

import numpy as np
import onnx
import pytest
import torch

from workers.compression.onnx_export import run_onnx
from workers.compression.runners import open_runner
from workers.engine import Chunk, UnusableModel, open_engine


def test_logits_are_the_models_with_and_without_a_past(any_model, save, spec, tokenizer, prompts):
    run_onnx(made := spec("onnx", save(any_model)))
    onnx.checker.check_model(str(made.output_folder / "model.onnx"), full_check=True)
    sequences = [tokenizer.encode_prompt(prompt)[:length] for prompt, length in zip(prompts, (9, 5, 9, 7, 3, 8), strict=True)]
    with closing(open_runner(made.output_folder, threads=1, max_batch=8, max_seq_len=96)) as runner:
        found = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)])
        after = runner.forward([Chunk(slot, len(tokens), [11]) for slot, tokens in enumerate(sequences)])  # pasts of several lengths in one call
    with torch.inference_mode():
        for tokens, first, second in zip(sequences, found, after, strict=True):
            np.testing.assert_allclose(first, any_model(torch.tensor([tokens]))[0, -1].numpy(), atol=1e-4)
            np.testing.assert_allclose(second, any_model(torch.tensor([[*tokens, 11]]))[0, -1].numpy(), atol=1e-4)


def test_greedy_answers_through_the_engine_are_the_parents(make_model, save, spec, prompts):
    parent = save(make_model())
    result = run_onnx(made := spec("onnx", parent))
    texts = []
    for folder in (parent, made.output_folder):
        with closing(open_engine(folder)) as engine:
            texts.append([c.text for c in engine.generate_all(prompts, max_tokens=16)])
    assert texts[0] == texts[1]
    assert result["details"]["greedy_agreement"] == 1.0


def test_a_damaged_file_is_named(make_model, save, spec):
    run_onnx(made := spec("onnx", save(make_model())))
    (made.output_folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UnusableModel, match=r"model\.onnx of child"):
        open_runner(made.output_folder, threads=1, max_batch=1, max_seq_len=96)
