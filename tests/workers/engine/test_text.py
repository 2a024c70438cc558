import random

import pytest

from workers.engine.text import TextStream, Vocabulary

TEXT = "光合作用 turns CO₂ into sugar 🌱👩‍🔬, naïve! End"


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary(tokenizer)


def stream(vocabulary, tokens, stop=()):
    text = TextStream(vocabulary, stop)
    pieces = []
    for token in tokens:
        pieces.append(text.add([token]))
        if text.stopped:
            break
    return [*pieces, text.finish()], text


def test_pieces_join_to_the_text_and_none_has_half_a_character(vocabulary, tokenizer):
    pieces, text = stream(vocabulary, tokenizer.encode(TEXT))
    assert "".join(pieces) == text.text == TEXT
    assert not any("�" in piece for piece in pieces)


def test_tokens_that_come_together_give_the_text_of_those_that_come_alone(vocabulary, tokenizer):
    draw, tokens = random.Random(2), tokenizer.encode(f"  {TEXT} \n")
    for _ in range(50):
        text, left, pieces = TextStream(vocabulary), list(tokens), []
        while left:
            some = draw.randint(0, 5)
            pieces.append(text.add(left[:some]))
            left = left[some:]
        pieces.append(text.finish())
        assert "".join(pieces) == text.text == TEXT
        assert not any("�" in piece for piece in pieces)


def test_any_tokens_give_what_the_tokenizer_decodes(vocabulary, tokenizer):
    draw = random.Random(0)
    for _ in range(300):
        tokens = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(0, 25))]
        pieces, _ = stream(vocabulary, tokens)
        assert "".join(pieces) == tokenizer.decode(tokens).strip()


def test_ids_beyond_the_vocabulary_have_no_text(vocabulary, tokenizer):
    assert vocabulary.bytes_of(tokenizer.vocab_size + 7) == b""


def test_no_part_of_a_stop_string_is_given_out(vocabulary, tokenizer):
    draw = random.Random(1)
    for _ in range(200):
        begin = draw.randrange(1, len(TEXT) - 4)
        stops = [TEXT[begin : begin + draw.randint(1, 8)], "absent"]
        tokens = [token for letter in TEXT for token in tokenizer.encode(letter)]
        pieces, text = stream(vocabulary, tokens, stops)
        assert "".join(pieces) == text.text == TEXT[: TEXT.find(stops[0])].strip()
        assert text.stopped


def test_what_only_began_like_a_stop_string_is_given_out_after_all(vocabulary, tokenizer):
    pieces, text = stream(vocabulary, tokenizer.encode("ab abc"), stop=["abd", "abcd"])
    assert "".join(pieces) == "ab abc"
    assert not text.stopped
