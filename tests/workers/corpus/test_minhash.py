import random

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.corpus.minhash import PERMUTATIONS, SEED, candidate_pairs, shingle_hashes, signatures

TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "光合作用是植物利用阳光制造糖的过程",
    "ab",
    "x",
    "aaaaaaaaaaaa",
    "𝕬𝖇 astral 🐼 panda and more words",
]


def by_datasketch(text: str, size: int) -> np.ndarray:
    reference = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme="affine32", hashfunc=int)
    for value in set(shingle_hashes(text, size).tolist()):
        reference.update(value)
    return reference.hashvalues


@pytest.mark.parametrize("size", [3, 5])
def test_signatures_are_bit_identical_to_datasketch(size):
    ours = signatures(TEXTS, [size] * len(TEXTS))

    for text, row in zip(TEXTS, ours, strict=True):
        np.testing.assert_array_equal(row, by_datasketch(text, size).astype(np.uint32))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.sampled_from([3, 5])), min_size=1, max_size=8))
def test_a_signature_does_not_depend_on_its_neighbours_in_the_batch(rows):
    texts, sizes = [text for text, _ in rows], [size for _, size in rows]

    together = signatures(texts, sizes)

    alone = np.concatenate([signatures([text], [size]) for text, size in rows])
    np.testing.assert_array_equal(together, alone)


def test_equal_shingles_have_equal_hashes_wherever_they_stand():
    first, second = shingle_hashes("abcdefgh", 5), shingle_hashes("xyzabcdefgh", 5)

    assert first.tolist() == second[3:].tolist()
    assert len(set(first.tolist())) == 4


def test_the_share_of_equal_minima_estimates_jaccard():
    rng = random.Random(0)
    words = [f"w{n:03d}" for n in range(400)]
    for overlap in (100, 200, 300):
        left, right = words[:300], words[300 - overlap : 600 - overlap]
        a, b = (" ".join(rng.sample(part, len(part))) for part in (left, left[:overlap] + right[overlap:]))
        shared = set(shingle_hashes(a, 5).tolist()), set(shingle_hashes(b, 5).tolist())
        exact = len(shared[0] & shared[1]) / len(shared[0] | shared[1])
        pair = signatures([a, b], [5, 5])

        assert abs((pair[0] == pair[1]).mean() - exact) < 4 * 0.5 / PERMUTATIONS**0.5


def test_candidates_are_exactly_the_pairs_that_share_a_band_up_to_the_chain():
    signature = np.random.default_rng(0).integers(0, 3, (60, 8)).astype(np.uint32)

    pairs = candidate_pairs(signature, bands=2, rows=4)

    sharing = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if (signature[i, :4] == signature[j, :4]).all() or (signature[i, 4:] == signature[j, 4:]).all()
    }
    assert pairs <= sharing
    assert {i for pair in sharing for i in pair} == {i for pair in pairs for i in pair}
