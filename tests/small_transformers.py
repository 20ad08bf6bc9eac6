"""Small vision transformers as other people write them."""

import torch
from torch import nn


class Patches(nn.Module):
    """A patch embedding as a module of its own: (N, C, H, W) → (N, L, width)."""

    def __init__(self, channels, patch, width, **options):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, **{"stride": patch, **options})

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Mixing(nn.Module):
    """Attention written out, with one linear map for queries, keys and values."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        n, length, width = x.shape
        parts = self.qkv(self.norm(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(dim=-1)
        x = x + self.out((shares @ v).transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm_after(x))


class TokenFirst(nn.Module):
    """As timm does it: a class token in front, then the sum, then blocks."""

    def __init__(self, side=16, patch=4, width=24, channels=3, classes=5, depth=1, **options):
        super().__init__()
        self.patch_embed = Patches(channels, patch, width, **options)
        count = self.patch_embed(torch.zeros(1, channels, side, side)).shape[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, count + 1, width) * 0.02)
        self.pos_drop = nn.Dropout(0.0)
        self.blocks = nn.Sequential(*(Mixing(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.blocks(self.pos_drop(x + self.pos_embed))
        return self.head(self.norm(x)[:, 0])


class TokenLast(nn.Module):
    """The token stands last, positions are looked up in a table, PyTorch's own encoder follows."""

    def __init__(self, side=16, patch=4, width=24, channels=3, classes=5):
        super().__init__()
        self.steps = (side // patch) ** 2
        self.embed = nn.Conv2d(channels, width, patch, patch, bias=False)
        self.places = nn.Embedding(self.steps + 1, width)
        self.token = nn.Parameter(torch.zeros(width))
        self.register_buffer("order", torch.arange(self.steps + 1))
        self.encoder = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.classify = nn.Linear(width, classes)

    def forward(self, x):
        x = self.embed(x)
        x = x.permute(0, 2, 3, 1).reshape(x.size(0), self.steps, -1)
        x = torch.cat([x, self.token.expand(x.size(0), 1, -1)], 1)
        return self.classify(self.encoder(self.places(self.order) + x)[:, -1])


class Pooled(TokenFirst):
    """No class token; the embedding lies as the map does, behind a stem of two convolutions."""

    def __init__(self, side=16, width=24, channels=3, classes=5):
        super().__init__(side, 4, width, channels, classes)
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1)
        self.patch_embed = nn.Conv2d(16, width, 4, 4)
        self.pos_embed = nn.Parameter(torch.randn(width, side // 4, side // 4) * 0.02)
        del self.cls_token

    def forward(self, x):
        x = self.patch_embed(torch.tanh(self.stem(x))) + self.pos_embed
        return self.head(self.norm(self.blocks(x.flatten(2).mT)).mean(dim=1))
