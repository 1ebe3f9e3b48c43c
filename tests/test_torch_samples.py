"""Whether the samples of a batch meet in a module, seen by running it on a batch and on its halves."""

import pytest
import torch
import torch_models as models
from torch import nn

from planner.read_model.torch_samples import mixed_samples

TOKENS = torch.zeros(1, 6, dtype=torch.long)
ROWS = torch.zeros(1, 8)


class Normed(nn.Module):
    """A norm over the batch written by hand, in training mode only."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x):
        x = self.inner(x)
        return x - x.mean(0) if self.training else x


class Dropped(Normed):
    """Whole samples dropped at random, as in stochastic depth."""

    def forward(self, x):
        return self.inner(x) * (torch.rand(len(x), 1) > 0.5 if self.training else 1.0)


class Summed(Normed):
    def forward(self, x):
        return self.inner(x).sum()


class Attending(nn.Module):
    """Attention over the first dimension, which is the batch."""

    def __init__(self):
        super().__init__()
        self.table, self.attention = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2, dropout=0.1)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.attention(x, x, x)[0]


class Positioned(nn.Module):
    """Tokens and learned positions, which have one row for all samples."""

    def __init__(self, centred=False):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 8), nn.Embedding(64, 8)
        self.centred = centred

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return x - x.mean(0) if self.centred else x


class One(Summed):
    """Takes a single sample only."""

    def forward(self, x):
        assert x.shape[0] == 1
        return super().forward(x)


class Refusing(Summed):
    """Raises what is no error of torch's."""

    def forward(self, x):
        raise {}["nothing"]


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (models.Centred(layers=1), TOKENS),
        (models.Pair(), (ROWS, TOKENS)),
        (Normed(), ROWS),
        (Summed(), ROWS),
        (Attending(), TOKENS),
    ],
    ids=lambda it: type(it).__name__,
)
def test_samples_that_meet_are_seen(module, example):
    """Also a sum over the batch, which is not the mean of its micro-batches' sums."""
    assert mixed_samples(module, example) == "output 0"


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (models.Decoder(layers=1, network=models.Experts), TOKENS),
        (models.Convolutional(), torch.zeros(1, 8, 8, 8)),
        (nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout()), ROWS),
        (Dropped(), ROWS),
        (nn.LSTM(8, 4, 2, batch_first=True), torch.zeros(1, 5, 8)),
    ],
    ids=lambda it: type(it).__name__,
)
def test_samples_that_do_not_meet(module, example):
    """BatchNorm by its own rule; states of ``[layers, batch, hidden]``; dropout of whole samples."""
    drawn = torch.get_rng_state()

    assert mixed_samples(module, example) is None
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("seed", range(30))
def test_samples_dropped_alike_twice_are_no_samples_that_meet(seed):
    """Two of the three runs of four samples may drop the same ones."""
    torch.manual_seed(seed)
    assert mixed_samples(Dropped(), ROWS) is None


SHAPES = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 8), (4, 8), (4, 16), (8, 32), (16, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_positions_are_no_samples(shape):
    """However many there are, twice and four times the batch too; what meets is seen all the same."""
    tokens = torch.zeros(shape, dtype=torch.long)

    assert mixed_samples(Positioned(), tokens) is None
    assert mixed_samples(Positioned(centred=True), tokens) == "output 0"


def test_the_example_s_batch_costs_nothing():
    """The most samples of any pass are four, of one sample or of many; inputs with one row for all are repeated."""
    passes = []

    class Counting(Positioned):
        def forward(self, tokens, positions):
            passes.append((len(tokens), len(positions)))
            return super().forward(tokens) + self.positions(positions)

    example = {"tokens": torch.zeros(8, 6, dtype=torch.long), "positions": torch.arange(6)[None]}

    assert mixed_samples(Counting(), example) is None
    assert passes == [(4, 4), (2, 2), (4, 4), (2, 2), (2, 2)]


@pytest.mark.parametrize("network", [One, Refusing])
def test_a_module_that_does_not_run_says_nothing(network):
    assert mixed_samples(network(), ROWS) is None
