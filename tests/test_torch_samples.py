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
