import torch

from workers.moe.model import KVCache


def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence(make_model):
    model = make_model()
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)
    cache = KVCache(model.config, batch=2, capacity=20)
    parts = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 13), (13, 20))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_documents_packed_in_one_row_do_not_see_each_other(make_model):
    model = make_model()
    first, second = torch.randint(0, 300, (1, 6)), torch.randint(0, 300, (1, 9))
    document = torch.tensor([[0] * 6 + [1] * 9])
    mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    positions = torch.tensor([[*range(6), *range(9)]])
    packed = model(torch.cat([first, second], dim=1), positions=positions, mask=mask)
    torch.testing.assert_close(packed, torch.cat([model(first), model(second)], dim=1), atol=1e-5, rtol=1e-4)


def test_selected_rows_are_the_same_rows_of_the_logits(make_model):
    model = make_model()
    tokens = torch.randint(0, 300, (3, 5))
    select = torch.tensor([1, 4, 14])
    torch.testing.assert_close(model(tokens, select=select), model(tokens).flatten(0, 1)[select])


def test_padding_reaches_no_expert_and_changes_nothing(make_model):
    model = make_model().train()
    tokens = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    valid = torch.tensor([[True] * 7 + [False] * 3] * 2)
    plain = model(tokens)
    balance = [(r.load, r.aux_loss, r.z_loss) for r in model.routers()]
    torch.testing.assert_close(model(padded, valid=valid)[:, :7], plain, atol=1e-5, rtol=1e-4)
    for router, expected in zip(model.routers(), balance, strict=True):
        torch.testing.assert_close((router.load, router.aux_loss, router.z_loss), expected)
