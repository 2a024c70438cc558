"""The model card of an ONNX version: its inputs and outputs, with their shapes, and how to call it from another language."""

from pathlib import Path

from workers.compression.folders import model_card
from workers.moe import ModelConfig


def card_of(parent: Path, config: ModelConfig, int8: bool) -> str:
    weights = f"{_INT8 if int8 else _FP32}{_BLIND if config.image_size else ''}"
    return model_card(parent, "ONNX", _TEXT.format(weights=weights, **_sizes(config)))


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "last": config.n_layers - 1, "layers": config.n_layers, "kv_heads": config.n_kv_heads, "head_dim": config.head_dim,
        "vocab": config.vocab_size, "most": config.max_seq_len,
    }  # fmt: skip


_FP32 = "Weights are FP32; its logits are the parent's."
_INT8 = "Weights are 8-bit (`MatMulNBits`, `QMoE`); activations are rounded at run time, routers and norms are FP32."
_BLIND = "\nThe graph reads text only: the image front end of its parent is not in it."

_TEXT = """\
`model.onnx` with a cache of keys and values, for onnxruntime 1.23 or later in any language (it uses onnxruntime's own `MoE` operators).
{weights}

B sequences, T new tokens, P tokens in the past (0 at first), S = P + T, at most {most}; names as in Optimum and transformers.js.

| input | shape | type | holds |
|---|---|---|---|
| `input_ids` | (B, T) | int64 | the new tokens |
| `position_ids` | (B, T) | int64 | their positions, from 0 on |
| `attention_mask` | (B, S) | int64 | 1 where a key may be seen, past ones first |
| `past_key_values.0.key` … `past_key_values.{last}.value` | (B, {kv_heads}, P, {head_dim}) | float32 | `present…` of the call before |

| output | shape | type | holds |
|---|---|---|---|
| `logits` | (B, T, {vocab}) | float32 | of the token after each |
| `present.0.key` … `present.{last}.value` | (B, {kv_heads}, S, {head_dim}) | float32 | `past_key_values…` of the next call |

A question is formatted by the chat template in `tokenizer_config.json`; an answer ends with `eos_token_id` of `generation_config.json`.

```js
// node answer.mjs model.onnx 17 4 90: greedy, from the ids of a formatted question to those of its answer
import {{ InferenceSession, Tensor }} from "onnxruntime-node";

const [path, ...question] = process.argv.slice(2);
const session = await InferenceSession.create(path);
const int64 = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
let past = {{}};
for (const name of session.inputNames.filter((name) => name.startsWith("past_key_values")))
  past[name] = new Tensor("float32", new Float32Array(0), [1, {kv_heads}, 0, {head_dim}]);
let ids = question.map(Number), seen = 0;
const answer = [], end = Number(process.env.END ?? 2), most = Number(process.env.MOST ?? 64);
while (answer.length < most) {{
  const positions = ids.map((_, i) => seen + i);
  seen += ids.length;
  const out = await session.run({{ input_ids: int64(ids), position_ids: int64(positions), attention_mask: int64(Array(seen).fill(1)), ...past }});
  const last = out.logits.data.subarray(-{vocab});
  const next = last.indexOf(Math.max(...last));
  if (next === end) break;
  answer.push(next);
  ids = [next];
  past = Object.fromEntries(Object.keys(past).map((name) => [name, out[name.replace("past_key_values", "present")]]));
}}
console.log(JSON.stringify(answer));
```"""
