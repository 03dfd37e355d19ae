"""The module tree of the published plain UNETR, whose weights `medseg.weights` converts.

Widths are arguments so that the tests stay small; everything else is as published. Written for these tests.
"""

import math

import torch
from torch import nn


class SingleDeconv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.block = nn.ConvTranspose3d(a, b, 2, 2)

    def forward(self, x):
        return self.block(x)


class SingleConv(nn.Module):
    def __init__(self, a, b, k=3):
        super().__init__()
        self.block = nn.Conv3d(a, b, k, padding=k // 2)

    def forward(self, x):
        return self.block(x)


class Conv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.block = nn.Sequential(SingleConv(a, b), nn.BatchNorm3d(b), nn.ReLU())

    def forward(self, x):
        return self.block(x)


class Deconv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.block = nn.Sequential(SingleDeconv(a, b), SingleConv(b, b), nn.BatchNorm3d(b), nn.ReLU())

    def forward(self, x):
        return self.block(x)


class Attention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).permute(0, 2, 1, 3) for f in (self.query, self.key, self.value))
        p = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(c // self.heads), -1)
        return self.out((p @ v).permute(0, 2, 1, 3).reshape(b, n, c))


class FeedForward(nn.Module):
    def __init__(self, c, hidden):
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(c, hidden), nn.Linear(hidden, c)

    def forward(self, x):
        return self.w_2(torch.relu(self.w_1(x)))


class Layer(nn.Module):
    def __init__(self, c, heads, hidden):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c, eps=1e-6)
        self.mlp, self.attn = FeedForward(c, hidden), Attention(c, heads)

    def forward(self, x):
        x = x + self.attn(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Embeddings(nn.Module):
    def __init__(self, in_channels, c, tokens):
        super().__init__()
        self.patch_embeddings = nn.Conv3d(in_channels, c, 16, 16)
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, c))

    def forward(self, x):
        return self.patch_embeddings(x).flatten(2).transpose(-1, -2) + self.position_embeddings


class Transformer(nn.Module):
    def __init__(self, in_channels, c, tokens, heads, hidden):
        super().__init__()
        self.embeddings = Embeddings(in_channels, c, tokens)
        self.layer = nn.ModuleList(Layer(c, heads, hidden) for _ in range(12))
        self.encoder_norm = nn.LayerNorm(c, eps=1e-6)

    def forward(self, x):
        x, taps = self.embeddings(x), []
        for number, layer in enumerate(self.layer, start=1):
            x = layer(x)
            if number in (3, 6, 9, 12):
                taps.append(x)
        return taps


class PublishedUNETR(nn.Module):
    """transformer, decoder0/3/6/9, their upsamplers, decoder0_header; encoder_norm is built and never used."""

    def __init__(self, in_channels, out_channels, size=32, c=24, heads=2, hidden=32, w=4):
        super().__init__()
        self.c, self.grid = c, (size // 16,) * 3
        self.transformer = Transformer(in_channels, c, (size // 16) ** 3, heads, hidden)
        w1, w2, w3 = 2 * w, 4 * w, 8 * w
        self.decoder0 = nn.Sequential(Conv(in_channels, w // 2), Conv(w // 2, w))
        self.decoder3 = nn.Sequential(Deconv(c, w3), Deconv(w3, w2), Deconv(w2, w1))
        self.decoder6 = nn.Sequential(Deconv(c, w3), Deconv(w3, w2))
        self.decoder9 = Deconv(c, w3)
        self.decoder12_upsampler = SingleDeconv(c, w3)
        self.decoder9_upsampler = nn.Sequential(Conv(2 * w3, w3), Conv(w3, w3), SingleDeconv(w3, w2))
        self.decoder6_upsampler = nn.Sequential(Conv(2 * w2, w2), Conv(w2, w2), SingleDeconv(w2, w1))
        self.decoder3_upsampler = nn.Sequential(Conv(2 * w1, w1), Conv(w1, w1), SingleDeconv(w1, w))
        self.decoder0_header = nn.Sequential(Conv(2 * w, w), Conv(w, w), SingleConv(w, out_channels, 1))

    def forward(self, x):
        z3, z6, z9, z12 = (t.transpose(-1, -2).view(-1, self.c, *self.grid) for t in self.transformer(x))
        z = self.decoder9_upsampler(torch.cat([self.decoder9(z9), self.decoder12_upsampler(z12)], 1))
        z = self.decoder6_upsampler(torch.cat([self.decoder6(z6), z], 1))
        z = self.decoder3_upsampler(torch.cat([self.decoder3(z3), z], 1))
        return self.decoder0_header(torch.cat([self.decoder0(x), z], 1))
