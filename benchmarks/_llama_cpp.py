"""llama.cpp as a peer: one of our model folders as GGUF, decoded by its batched API. Run by a Python that has llama-cpp-python; needs nothing of ours.

    python _llama_cpp.py FOLDER F32|Q8_0 THREADS default|exact

Reads lines of JSON, `{"prompts": [[id, …], …], "tokens": n}`, and answers each with `{"answers": [[id, …], …], "seconds": s}`: greedy,
all prompts in one batch, then one `llama_decode` a step for all sequences.

The last argument is of attention. By default llama.cpp keeps keys and values in F16, and its flash attention rounds queries and weights to F16 on a CPU whatever
they are kept in: of a random model's logits that moves some by a hundredth and, where it changes an expert, by more. `exact` keeps F32 and takes its plain
attention, whose logits are as near to those in FP64 as ours. The folder's architecture is Mixtral's, which GGUF calls `llama` with experts: the formula is ours to
the last term.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

SEQUENCES, LENGTH = 32, 512  # at once, and of one
BATCH = 2048


def write_gguf(folder: Path, path: Path, quantization: gguf.GGMLQuantizationType) -> None:
    """Matrices quantized, norms and routers in FP32, as llama.cpp's own converter does."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    heads, kv_heads, layers = config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])

    def add(name: str, value: np.ndarray, kind: gguf.GGMLQuantizationType = quantization) -> None:
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)

    exact = gguf.GGMLQuantizationType.F32
    add("token_embd.weight", tensors["model.embed_tokens.weight"])
    add("output_norm.weight", tensors["model.norm.weight"], exact)
    if "lm_head.weight" in tensors:
        add("output.weight", tensors["lm_head.weight"])
    for layer in range(layers):
        theirs, ours = f"blk.{layer}.", f"model.layers.{layer}."
        add(f"{theirs}attn_norm.weight", tensors[f"{ours}input_layernorm.weight"], exact)
        add(f"{theirs}ffn_norm.weight", tensors[f"{ours}post_attention_layernorm.weight"], exact)
        add(f"{theirs}attn_q.weight", _in_pairs(tensors[f"{ours}self_attn.q_proj.weight"], heads))
        add(f"{theirs}attn_k.weight", _in_pairs(tensors[f"{ours}self_attn.k_proj.weight"], kv_heads))
        add(f"{theirs}attn_v.weight", tensors[f"{ours}self_attn.v_proj.weight"])
        add(f"{theirs}attn_output.weight", tensors[f"{ours}self_attn.o_proj.weight"])
        add(f"{theirs}ffn_gate_inp.weight", tensors[f"{ours}block_sparse_moe.gate.weight"], exact)
        for name, matrix in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            experts = [tensors[f"{ours}block_sparse_moe.experts.{n}.{matrix}.weight"] for n in range(config["num_local_experts"])]
            add(f"{theirs}ffn_{name}_exps.weight", np.stack(experts))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, (heads · head_dim, d_model): Hugging Face rotates halves of a head, this architecture neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


class Decoder:
    def __init__(self, path: Path, threads: int, exact: bool):
        llama_cpp.llama_log_set(_silent, None)
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = SEQUENCES * LENGTH, SEQUENCES, BATCH, 512
        if exact:
            params.type_k = params.type_v = int(gguf.GGMLQuantizationType.F32)
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def answer(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        began = time.perf_counter()
        ids = self._decode([(token, at, n, at == len(p) - 1) for n, p in enumerate(prompts) for at, token in enumerate(p)], len(prompts))
        answers = [ids]
        for step in range(tokens - 1):
            ids = self._decode([(token, len(prompts[n]) + step, n, True) for n, token in enumerate(ids)], len(prompts))
            answers.append(ids)
        return [list(answer) for answer in zip(*answers, strict=True)], time.perf_counter() - began

    def _decode(self, rows: list[tuple[int, int, int, bool]], wanted: int) -> list[int]:
        """The likeliest next tokens of the rows that want one. `rows`: token, position, sequence, whether it wants one."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wants) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wants
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (wanted, self.vocab_size))
        likeliest: list[int] = logits.argmax(axis=-1).tolist()
        return likeliest


@llama_cpp.llama_log_callback
def _silent(level, text, data):
    del level, text, data


def main() -> None:
    folder, kind, threads, exact = Path(sys.argv[1]), gguf.GGMLQuantizationType[sys.argv[2]], int(sys.argv[3]), sys.argv[4] == "exact"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_gguf(folder, path, kind)
        decoder = Decoder(path, threads, exact)
        print(json.dumps({"version": llama_cpp.__version__, "bytes": path.stat().st_size}), flush=True)
    for line in sys.stdin:
        answers, seconds = decoder.answer(**json.loads(line))
        print(json.dumps({"answers": answers, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
