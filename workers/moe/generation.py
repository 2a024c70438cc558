"""The shortest way to an answer: greedy, one sequence at a time. Serving has its own engine (`workers.engine`)."""

import torch

from workers.moe.cache import KVCache
from workers.moe.model import Decoder
from workers.moe.pictures import pixels_of
from workers.moe.tokenizer import ChatTokenizer, asking


@torch.inference_mode()
def generate(model: Decoder, tokenizer: ChatTokenizer, question: str, max_tokens: int = 64, image: str | None = None) -> str:
    """The model's most likely answer to `question`. A question that leaves no room for an answer gives an empty one.

    `image`: a data URL of a picture that the question is about. NoPictures, BadPicture.
    """
    prompt = tokenizer.encode_prompt([asking(question, image)], model.config.image_patches)
    room = min(max_tokens, model.config.max_seq_len - len(prompt))
    if room < 1:
        return ""
    device = model.embedding.weight.device
    cache = KVCache(model.config, batch=1, capacity=len(prompt) + room, device=device)
    answer: list[int] = []
    step = torch.tensor([prompt], device=device)
    seen: dict[str, torch.Tensor] = {}
    if image:
        at = torch.tensor([i for i, token in enumerate(prompt) if token == tokenizer.image_id], device=device)
        seen = {"images": torch.from_numpy(pixels_of(image, model.config.image_size))[None].to(device), "image_at": at}
    while len(answer) < room:
        token = int(model(step, cache=cache, **seen)[0, -1].argmax())
        seen = {}
        if token in tokenizer.end_ids:
            break
        answer.append(token)
        step = torch.tensor([[token]], device=device)
    return tokenizer.decode(answer).strip()
