"""What rows keep in English, told to a reader of another language."""

import re
from pathlib import Path

import pytest
from django.utils.translation import override

from apps.portal.retelling import SAYINGS, retold

ROOT = Path(__file__).resolve().parents[3]
HOLE = re.compile(r"%\(\w+\)s")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Train nano on demo", "在 demo 上训练 nano"),
        ("pruning of v2", "v2 的剪枝"),
        ("86 of 214 questions answered", "已回答 86 / 214 个问题"),
        ("INT8: Loading the model", "INT8: 加载模型"),
        ("INT8: Measuring speed against the parent", "INT8: 与父版本比较速度"),
        ("The upstream gpu:8000 does not answer. It is tried again every few seconds; ask again in a moment. The last time: "
         "The upstream gpu:8000 has not begun to answer within 30 s.",
         "上游 gpu:8000 没有回答，每隔几秒会重试一次；请稍后再问。上一次：上游 gpu:8000 在 30 秒内没有开始回答。"),
        ("data.pdf is a PDF document, which cannot be read. Send JSONL (one JSON object a line), CSV with a header, Parquet or plain UTF-8 text.",
         "data.pdf（a PDF document）无法读取。请发送 JSONL（每行一个 JSON 对象）、带表头的 CSV、Parquet 或 UTF-8 纯文本。"),
        ("Something nobody knows: not even this", "Something nobody knows: not even this"),
    ],
)  # fmt: skip
def test_a_sentence_is_found_again_with_what_it_names(said, told):
    with override("zh-hans"):
        assert retold(said) == told
    with override("en"):
        assert retold(said) == said


def test_every_saying_is_still_said_somewhere():
    sources = [path.read_text() for folder in ("workers", "apps") for path in (ROOT / folder).rglob("*.py") if path.name != "retelling.py"]
    said = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))

    def is_said(saying: str) -> bool:
        whole = max(HOLE.split(saying), key=len).strip(" (:.")
        telling = whole[-25:]
        if telling in said or telling.replace(" ", "_") in said or telling.endswith(" of"):  # a method's name before " of"
            return True
        parts = [part.strip() for part in re.split(r"\band\b", whole)]  # "pruning and INT8": put together of the two
        return len(parts) > 1 and all(part in said for part in parts)

    assert [saying for saying in SAYINGS if not is_said(saying)] == []
