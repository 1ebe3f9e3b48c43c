"""Small models written by hand, one of each sort that is not a decoder from a config."""

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)  # small tensors; more threads only wait for each other


class Attention(nn.Module):
    """Self- or cross-attention; ``window`` is only an attribute, as masks come from outside."""

    def __init__(self, width: int, heads: int, causal: bool = False, window: int | None = None):
        super().__init__()
        self.heads, self.is_causal, self.sliding_window = heads, causal, window
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (f(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f, t in ((self.q, x), (self.k, context), (self.v, context)))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm, attention, norm, network; with a residual around each."""

    def __init__(self, width: int, heads: int, network: nn.Module | None = None, **attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, **attention)
        self.network = network or nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.network(self.norm2(x))


class Decoder(nn.Module):
    """Tokens to logits; ``windows`` alternate over the layers, the head may be tied."""

    def __init__(self, width=64, heads=4, layers=4, vocab=300, windows=(None,), tied=False, network=lambda: None):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, network(), causal=True, window=windows[i % len(windows)]) for i in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Scaled(Decoder):
    """Parameters of its own before the layers and behind them."""

    def __init__(self, width=64, **parts):
        super().__init__(width, **parts)
        self.start, self.scale = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, tokens):
        x = self.embed(tokens) + self.start
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x) * self.scale)


class GroupedAttention(nn.Module):
    """Queries, keys and values of one fused product; the heads of keys and values are repeated by hand."""

    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.repeats = heads, kv_heads, heads // kv_heads
        self.q_size, self.kv_size = width, width // heads * kv_heads
        self.qkv, self.o = nn.Linear(width, self.q_size + 2 * self.kv_size), nn.Linear(width, width, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).split([self.q_size, self.kv_size, self.kv_size], -1)
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2)
                   for t, n in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads)))  # fmt: skip
        k, v = (t.repeat_interleave(self.repeats, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


class Grouped(Decoder):
    """Two heads of keys and values for all queries."""

    def __init__(self, width=64, heads=4, **parts):
        super().__init__(width, heads, **parts)
        for block in self.blocks:
            block.attention = GroupedAttention(width, heads, 2)


class Centred(Decoder):
    """Logits less their mean over the batch: samples meet."""

    def forward(self, tokens):
        logits = super().forward(tokens)
        return logits - logits.mean(0, keepdim=True)


class Shared(Decoder):
    """Logits by the embedding's own table, without a head."""

    def __init__(self, **parts):
        super().__init__(**parts)
        del self.head

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


class Pair(nn.Module):
    """Two towers and their contrastive loss."""

    def __init__(self):
        super().__init__()
        self.images, self.words = nn.Linear(8, 4), nn.Embedding(10, 4)

    def forward(self, images, words):
        one, other = self.images(images), self.words(words).mean(1)
        return F.cross_entropy(one @ other.T, torch.arange(len(one)))


class Experts(nn.Module):
    """Top-k experts in a loop, each on the tokens that chose it."""

    def __init__(self, width=64, experts=4, top_k=2, inner=96):
        super().__init__()
        self.top_k, self.router = top_k, nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)) for _ in range(experts)
        )

    def chosen(self, shares):
        """The experts ``[tokens, top_k]`` of each token, by its share for each."""
        return shares.topk(self.top_k).indices

    def forward(self, x):
        flat = x.flatten(0, 1)
        shares = self.router(flat).softmax(-1)
        chosen = self.chosen(shares)
        weights = shares.gather(1, chosen)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == i)
            out.index_add_(0, rows, expert(flat[rows]) * weights[rows, slot, None])
        return out.view_as(x)


class Residual(nn.Module):
    """Convolution, norm, ReLU, twice, around a shortcut."""

    def __init__(self, inward: int, outward: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inward, outward, 3, padding=1), nn.Conv2d(outward, outward, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(outward), nn.BatchNorm2d(outward)
        self.short = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.short(x)).relu()


class Convolutional(nn.Module):
    """A small residual network with a depthwise convolution at its foot."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.stages = nn.Sequential(Residual(8, 16), Residual(16, 16), Residual(16, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class UNet(nn.Module):
    """Three levels down and up again, with a skip at each and attention at the bottom."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(Residual(max(width, size // 2) if i else width, size) for i, size in enumerate(sizes))
        self.middle = Attention(sizes[-1], 2)
        self.up = nn.ModuleList(
            Residual(2 * size, max(width, size // 2) if i else width) for i, size in enumerate(sizes)
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        x, skips = self.first(x), []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        n, c, h, w = x.shape
        x = self.middle(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)
        for block in reversed(self.up):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1))
        return self.last(x)


class Modulated(nn.Module):
    """A DiT block: scales, shifts and gates come from the condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x, c):
        a, b, g, d, e, f = self.condition(F.silu(c)).unsqueeze(1).chunk(6, -1)
        x = x + g * self.attention(self.norm(x) * (1 + a) + b)
        return x + f * self.network(self.norm(x) * (1 + d) + e)


class DiT(nn.Module):
    """Patches of an image, a condition, blocks that it modulates, and patches again."""

    def __init__(self, width=64, heads=4, layers=3, patch=2, size=16):
        super().__init__()
        self.patch = nn.Conv2d(4, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Modulated(width, heads) for _ in range(layers))
        self.out = nn.Linear(width, patch * patch * 4)

    def forward(self, x, t):
        x, c = self.patch(x).flatten(2).transpose(1, 2) + self.positions, self.time(t)
        for block in self.blocks:
            x = block(x, c)
        return self.out(x)


class TwoTowers(nn.Module):
    """Two encoders of their own widths, and a product of what they give."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(*(Block(64, 4) for _ in range(2)))
        self.right = nn.Sequential(*(Block(32, 4) for _ in range(3)))
        self.project = nn.Linear(64, 32)

    def forward(self, left, right):
        return self.project(self.left(left).mean(1)) @ self.right(right).mean(1).T


class Squared(torch.autograd.Function):
    """``max(x, 0)^2`` that keeps its input and nothing else."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0) ** 2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x.clamp(min=0)


class SquaredNetwork(nn.Module):
    """A feed-forward network around :class:`Squared`."""

    def __init__(self, width=64, inner=160):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down(Squared.apply(self.up(x)))
