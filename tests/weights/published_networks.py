"""The published re-implementations, rebuilt from the facts: their keys, layers and order of concatenation.

Widths are arguments so that the tests stay small; everything else is as published. Written for these tests.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class PublishedUNet3D(nn.Module):
    """init_conv, down_conv1-3, up_sample1-3, up_conv1-3, final_conv; BN and PReLU after every convolution."""

    def __init__(self, in_channels, out_channels, w=2):
        super().__init__()
        self.init_conv = self.pair(in_channels, w, 2 * w)
        self.down_conv1 = self.pair(2 * w, 2 * w, 4 * w)
        self.down_conv2 = self.pair(4 * w, 4 * w, 8 * w)
        self.down_conv3 = self.pair(8 * w, 8 * w, 16 * w)
        self.up_sample1 = nn.ConvTranspose3d(16 * w, 16 * w, 2, 2)
        self.up_conv1 = self.pair(24 * w, 8 * w, 8 * w)
        self.up_sample2 = nn.ConvTranspose3d(8 * w, 8 * w, 2, 2)
        self.up_conv2 = self.pair(12 * w, 4 * w, 4 * w)
        self.up_sample3 = nn.ConvTranspose3d(4 * w, 4 * w, 2, 2)
        self.up_conv3 = self.pair(6 * w, 2 * w, 2 * w)
        self.final_conv = nn.Conv3d(2 * w, out_channels, 1)

    @staticmethod
    def pair(a, b, c):
        return nn.Sequential(
            nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.PReLU(b),
            nn.Conv3d(b, c, 3, padding=1), nn.BatchNorm3d(c), nn.PReLU(c),
        )  # fmt: skip

    def forward(self, x):
        """Logits, without the softmax the published forward ends in."""
        x0 = self.init_conv(x)
        x1 = self.down_conv1(F.max_pool3d(x0, 2))
        x2 = self.down_conv2(F.max_pool3d(x1, 2))
        x = self.down_conv3(F.max_pool3d(x2, 2))
        x = self.up_conv1(torch.cat([x2, self.up_sample1(x)], 1))
        x = self.up_conv2(torch.cat([x1, self.up_sample2(x)], 1))
        x = self.up_conv3(torch.cat([x0, self.up_sample3(x)], 1))
        return self.final_conv(x)


class PublishedShallowUNet(nn.Module):
    """conv_encode1-3, bottleneck, conv_decode3-2, final_layer; unpadded, ReLU before BN, (upsampled, skip)."""

    def __init__(self, in_channels, out_channels, w=4):
        super().__init__()
        self.conv_encode1 = nn.Sequential(*self.pair(in_channels, w))
        self.conv_encode2 = nn.Sequential(*self.pair(w, 2 * w))
        self.conv_encode3 = nn.Sequential(*self.pair(2 * w, 4 * w))
        self.bottleneck = nn.Sequential(*self.pair(4 * w, 8 * w), self.up(8 * w, 4 * w))
        self.conv_decode3 = nn.Sequential(*self.pair(8 * w, 4 * w), self.up(4 * w, 2 * w))
        self.conv_decode2 = nn.Sequential(*self.pair(4 * w, 2 * w), self.up(2 * w, w))
        last = [nn.Conv2d(w, out_channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out_channels)]
        self.final_layer = nn.Sequential(*self.pair(2 * w, w), *last)

    @staticmethod
    def pair(a, b):
        return nn.Conv2d(a, b, 3), nn.ReLU(), nn.BatchNorm2d(b), nn.Conv2d(b, b, 3), nn.ReLU(), nn.BatchNorm2d(b)

    @staticmethod
    def up(a, b):
        return nn.ConvTranspose2d(a, b, 3, 2, padding=1, output_padding=1)

    @staticmethod
    def join(up, skip):
        c = (skip.shape[2] - up.shape[2]) // 2
        return torch.cat([up, F.pad(skip, (-c, -c, -c, -c))], 1)

    def forward(self, x):
        x1 = self.conv_encode1(x)
        x2 = self.conv_encode2(F.max_pool2d(x1, 2))
        x3 = self.conv_encode3(F.max_pool2d(x2, 2))
        x = self.bottleneck(F.max_pool2d(x3, 2))
        x = self.conv_decode3(self.join(x, x3))
        x = self.conv_decode2(self.join(x, x2))
        return self.final_layer(self.join(x, x1))


class DoubleConv(nn.Module):
    def __init__(self, a, c, b=None):
        super().__init__()
        b = b or c
        self.double_conv = nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
            nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, a, b, bilinear):
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(a, b, a // 2)
        else:
            self.up = nn.ConvTranspose2d(a, a // 2, 2, 2)
            self.conv = DoubleConv(a, b)

    def forward(self, x, skip):
        x = self.up(x)
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([skip, x], 1))


class OutConv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 1)

    def forward(self, x):
        return self.conv(x)


class PublishedPaddedUNet(nn.Module):
    """inc, down1-4, up1-4, outc."""

    def __init__(self, in_channels, out_channels, w=4, bilinear=False):
        super().__init__()
        f = 2 if bilinear else 1
        self.inc = DoubleConv(in_channels, w)
        self.down1, self.down2, self.down3 = Down(w, 2 * w), Down(2 * w, 4 * w), Down(4 * w, 8 * w)
        self.down4 = Down(8 * w, 16 * w // f)
        self.up1, self.up2 = Up(16 * w, 8 * w // f, bilinear), Up(8 * w, 4 * w // f, bilinear)
        self.up3, self.up4 = Up(4 * w, 2 * w // f, bilinear), Up(2 * w, w, bilinear)
        self.outc = OutConv(w, out_channels)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(self.down4(x4), x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        return self.outc(self.up4(x, x1))


class ConvForward(nn.Module):
    def __init__(self, a, b, pre):
        super().__init__()
        if pre:
            layers = [nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1)]
            layers += [nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1)]
        else:
            layers = [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.Conv_forward = nn.Sequential(*layers)

    def forward(self, x):
        return self.Conv_forward(x)


class PublishedUNetPlusPlus(nn.Module):
    """stage_i, CONVi_j, upsample_i_j, final_super_0_j; concatenation (upsampled, oldest … newest)."""

    def __init__(self, in_channels, out_channels, w=4):
        super().__init__()
        f = [w, 2 * w, 4 * w, 8 * w, 16 * w]
        for i in range(5):
            setattr(self, f"stage_{i}", ConvForward(in_channels if i == 0 else f[i - 1], f[i], pre=False))
        for j in range(1, 5):
            for i in range(5 - j):
                setattr(self, f"CONV{i}_{j}", ConvForward(f[i] * (j + 1), f[i], pre=True))
                setattr(self, f"upsample_{i}_{j}", nn.ConvTranspose2d(f[i + 1], f[i], 4, 2, 1))
            head = nn.Sequential(nn.BatchNorm2d(f[0]), nn.ReLU(), nn.Conv2d(f[0], out_channels, 3, padding=1))
            setattr(self, f"final_super_0_{j}", head)

    def forward(self, x):
        """The list of the four heads' logits, shallowest first."""
        maps = {}
        for i in range(5):
            x = getattr(self, f"stage_{i}")(x if i == 0 else F.max_pool2d(x, 2))
            maps[i, 0] = x
        for j in range(1, 5):
            for i in range(5 - j):
                up = getattr(self, f"upsample_{i}_{j}")(maps[i + 1, j - 1])
                maps[i, j] = getattr(self, f"CONV{i}_{j}")(torch.cat([up, *(maps[i, k] for k in range(j))], 1))
        return [getattr(self, f"final_super_0_{j}")(maps[0, j]) for j in range(1, 5)]


def randomize(network, seed=0):
    """Give every weight and buffer of `network` random values that keep activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif value.dim() > 1 and "position" not in name:
            value.copy_(noise * math.sqrt(1.5 / value[0].numel()))
        else:
            value.copy_(noise * 0.3 + (1.0 if value.dim() == 1 and name.endswith("weight") else 0.0))
    return network.eval()
