"""Teach the routers to give each domain experts of its own, without asking for the domain when the model answers.

The mutual information of expert and domain is raised while the model trains (Mod-Squad, Chen et al. 2023, with a dataset's domains for
its tasks): I(E; D) = H(E) − H(E | D). The second term makes a domain choose few experts; the first keeps their loads even, and counts
twice here, since domains that want the same two experts are content with six idle ones. Nothing is added to the model.

With n(d, e) the tokens of domain d that expert e was given, the information grows fastest where log n(d, e) N / (n(d) n(e)) is large (its
derivative, up to a constant). So the loss is minus the mean of that over a batch's tokens, weighted by the router's probabilities,
with n as the last steps left it. As in the balance loss of the Switch Transformer (eq. 4), n counts what was chosen, and the gradient
goes through the probabilities. It is a mean over tokens, the same however they are spread over micro-batches and ranks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from workers.moe.router import Router
from workers.training.batches import Batch
from workers.training.examples import Example
from workers.training.state import Progress

MOST_DOMAINS = 64  # the largest; tokens of the others go where they like
KEPT_A_STEP = 0.98  # so the counts speak of the last fifty steps
PRIOR = 8.0  # tokens: what a pair's count must exceed to say something; without, an expert that few tokens met is shunned by all, for good


class DomainRouting:
    """`weight` 0, a dense model or fewer than two domains: it does nothing, and costs nothing."""

    def __init__(self, weight: float, examples: Sequence[Example], routers: Sequence[Router]):
        sizes = Counter(domain for example in examples for domain, _ in example.domains if domain)
        largest = sorted(sizes, key=lambda domain: (-sizes[domain], domain))[:MOST_DOMAINS]
        self.weight = weight
        self.routers = list(routers)
        self.numbers = {domain: number for number, domain in enumerate(sorted(largest))}
        self.is_on = weight > 0 and bool(routers) and len(self.numbers) > 1
        for router in self.routers:
            router.keep_choices = self.is_on

    @property
    def note(self) -> str:
        """For people, where it was asked for and can do nothing."""
        if not self.weight or self.is_on:
            return ""
        why = "the model is dense" if not self.routers else "the dataset's records are not of several domains"
        return f"domain_routing does nothing here: {why}."

    def mark(self, batch: Batch, examples: Sequence[Example]) -> Batch:
        """The batch with each token's domain; `examples` are those that it was packed from."""
        return replace(batch, domain=token_domains(batch, examples, self.numbers)) if self.is_on else batch

    def loss(self, batch: Batch, progress: Progress) -> Tensor:
        """Minus the mean over the batch's tokens and the sum over the layers, in nats; zero in the first step, when nothing is known yet."""
        total = torch.zeros((), device=batch.tokens.device)
        if not self.is_on or not progress.domain_counts:
            return total
        assert batch.domain is not None
        domain = batch.domain.reshape(-1)  # tokens; a token without a domain has the last row, which is zero
        for router, counts in zip(self.routers, progress.domain_counts, strict=True):
            assert router.shares is not None
            gain = gains(torch.tensor(counts, dtype=torch.float64))
            rows = torch.cat([gain, gain.new_zeros(1, gain.shape[1])]).to(batch.tokens.device, torch.float32)
            total = total - (router.shares * rows[domain]).sum() / batch.token_count
        return total

    def count(self, batch: Batch) -> list[Tensor]:
        """For each layer (domains · experts,) float64: the tokens of each domain that each expert was given in this batch."""
        if not self.is_on:
            return []
        assert batch.domain is not None
        domain, found = batch.domain.reshape(-1, 1), []
        for router in self.routers:
            assert router.ids is not None
            n, rows = router.n_experts, len(self.numbers)
            known = (domain < rows) & (router.ids < n)
            pairs = (domain * n + router.ids)[known]
            found.append(torch.bincount(pairs, minlength=rows * n).double())
        return found

    def remember(self, progress: Progress, counts: Sequence[Sequence[float]]) -> None:
        """`counts`: of one step, over all ranks, as `count` gives them."""
        if not self.is_on:
            return
        now = np.array(counts, np.float64).reshape(len(self.routers), len(self.numbers), -1)
        before = np.array(progress.domain_counts) if progress.domain_counts else np.zeros_like(now)
        progress.domain_counts = (before * KEPT_A_STEP + now).tolist()


def gains(counts: Tensor) -> Tensor:
    """What a token of domain d gains, in nats, by going to expert e: log n(d, e) N / (n(d) n(e)) for the information, and log N / (E n(e)) for the
    load, which the information alone would let go uneven. `counts`: (domains, experts) float64; zeros where nothing is known.
    """
    total, experts = counts.sum(), counts.shape[1]
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / total.clamp(min=1)
    information = ((counts + PRIOR) / (expected + PRIOR)).log()
    load = ((counts.sum(0, keepdim=True) + PRIOR) / (total / experts + PRIOR)).log()
    return information - load


def token_domains(batch: Batch, examples: Sequence[Example], numbers: dict[str, int]) -> Tensor:
    """(R, T) int64: the number of each token's domain, `len(numbers)` for padding and where there is none.

    The turns of a conversation keep their own.
    """
    owner = batch.example.cpu().numpy().reshape(-1)
    domain = np.full(owner.shape, len(numbers), np.int64)
    # An example's tokens stand together: sorted by owner they come example by example, each in its order.
    places = np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :]
    turns = [turn for example in examples for turn in example.domains]
    domain[places] = np.repeat([numbers.get(name, len(numbers)) for name, _ in turns], [length for _, length in turns])
    return torch.from_numpy(domain).view(batch.example.shape).to(batch.tokens.device)
