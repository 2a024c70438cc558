"""The shortest way to an answer: greedy, one sequence at a time. Serving has its own engine (`workers.engine`)."""

import torch

from workers.moe.model import Decoder, KVCache
from workers.moe.tokenizer import ChatTokenizer


@torch.inference_mode()
def generate(model: Decoder, tokenizer: ChatTokenizer, question: str, max_tokens: int = 64) -> str:
    """The model's most likely answer to `question`. A question that leaves no room for an answer gives an empty one."""
    prompt = tokenizer.encode_prompt([{"role": "user", "content": question}])
    room = min(max_tokens, model.config.max_seq_len - len(prompt))
    if room < 1:
        return ""
    device = model.embedding.weight.device
    cache = KVCache(model.config, batch=1, capacity=len(prompt) + room, device=device)
    answer: list[int] = []
    step = torch.tensor([prompt], device=device)
    while len(answer) < room:
        token = int(model(step, cache=cache)[0, -1].argmax())
        if token == tokenizer.end_id:
            break
        answer.append(token)
        step = torch.tensor([[token]], device=device)
    return tokenizer.decode(answer).strip()
