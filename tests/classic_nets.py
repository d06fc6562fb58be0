"""Small re-creations of the classic segmentation networks from their papers, as users write them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_relu(*channels: int, inplace: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(channels):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace)]
    return nn.Sequential(*layers)


class SegNet(nn.Module):
    """Badrinarayanan et al. 2017: indices go from each pool of the encoder to the decoder's unpool of that size."""

    def __init__(self, in_channels: int = 2, classes: int = 3, widths: tuple[int, ...] = (4, 6, 8)) -> None:
        super().__init__()
        ins = (in_channels, *widths)
        self.encoders = nn.ModuleList(conv_bn_relu(a, b, b) for a, b in zip(ins, widths, strict=False))
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2, 2)
        outs = (widths[0], *widths[:-1])
        self.decoders = nn.ModuleList(conv_bn_relu(b, b, a) for a, b in zip(outs, widths, strict=True))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for encoder in self.encoders:
            x = encoder(x)
            size = x.size()
            x, indices = self.pool(x)
            kept.append((indices, size))
        for decoder, (indices, size) in zip(reversed(self.decoders), reversed(kept), strict=True):
            x = decoder(self.unpool(x, indices, output_size=size))
        return self.head(x)


class FunctionalSegNet(SegNet):
    """The same with calls of functions, as many repositories have it."""

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for encoder in self.encoders:
            x = encoder(x)
            size = x.size()
            x, indices = F.max_pool2d(x, kernel_size=2, stride=2, return_indices=True)
            kept.append((indices, size))
        for decoder, (indices, size) in zip(reversed(self.decoders), reversed(kept), strict=True):
            x = decoder(torch.nn.functional.max_unpool2d(x, indices, 2, stride=2, output_size=size))
        return self.head(x)


class DeconvNet(nn.Module):
    """Noh et al. 2015: unpooling and transposed convolutions mirror VGG, with a fully convolutional middle."""

    def __init__(self, in_channels: int = 2, classes: int = 3, width: int = 4, middle: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn_relu(in_channels, width), conv_bn_relu(width, 2 * width)
        self.pool1 = nn.MaxPool2d((2, 2), return_indices=True)
        self.pool2 = nn.MaxPool2d(2, stride=(2, 2), return_indices=True)
        self.middle = nn.Sequential(
            nn.Conv2d(2 * width, middle, 3),
            nn.ReLU(True),
            nn.ConvTranspose2d(middle, 2 * width, 3),
            nn.ReLU(True),
        )
        self.unpool = nn.MaxUnpool2d(2)
        self.up2 = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, indices1 = self.pool1(self.down1(x))
        x, indices2 = self.pool2(self.down2(x))
        x = self.middle(x)
        x = self.up2(self.unpool(x, indices2))
        return self.head(self.up1(self.unpool(input=x, indices=indices1)))


class _Down(nn.Module):
    """ENet's bottleneck that halves the map: a pooled branch, padded with channels of zeros, and a convolved one."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, stride=2, return_indices=True)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 2, stride=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.Dropout2d(0.1),
        )
        self.act = nn.PReLU()
        self.extra = out - channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        main, indices = self.pool(x)
        main = F.pad(main, (0, 0, 0, 0, 0, self.extra))
        return self.act(main + self.body(x)), indices


class _Up(nn.Module):
    """ENet's bottleneck that doubles the map: an unpooled branch and a transposed convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))
        self.unpool = nn.MaxUnpool2d(kernel_size=2)
        self.body = nn.Sequential(
            nn.ConvTranspose2d(channels, out, 2, stride=2, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )

    def forward(self, x: Tensor, indices: Tensor, output_size: torch.Size) -> Tensor:
        main = self.unpool(self.main(x), indices, output_size=output_size)
        return F.relu(main + self.body(x))


class ENet(nn.Module):
    """After Paszke et al. 2016: a pool beside the first convolution, two halving bottlenecks, two that double."""

    def __init__(self, in_channels: int = 2, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.initial = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        self.initial_pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width + in_channels
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU())
        self.down1, self.down2 = _Down(channels, 2 * channels), _Down(2 * channels, 4 * channels)
        self.up2, self.up1 = _Up(4 * channels, 2 * channels), _Up(2 * channels, channels)
        self.head = nn.ConvTranspose2d(channels, classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.initial(x), self.initial_pool(x)], 1))
        size1 = x.size()
        x, indices1 = self.down1(x)
        size2 = x.size()
        x, indices2 = self.down2(x)
        x = self.up2(x, indices2, size2)
        return self.head(self.up1(x, indices1, size1))


class Gate(nn.Module):
    """The gate of the popular Attention U-Net: two 1x1 convolutions with batch normalisation, one for each map."""

    def __init__(self, g_channels: int, x_channels: int, inner: int) -> None:
        super().__init__()
        self.w_g = nn.Sequential(nn.Conv2d(g_channels, inner, 1), nn.BatchNorm2d(inner))
        self.w_x = nn.Sequential(nn.Conv2d(x_channels, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * self.psi(self.relu(self.w_g(g) + self.w_x(x)))


class GridGate(nn.Module):
    """Oktay et al. 2018: formed on the grid of a coarser g, from a strided convolution of x, and resized."""

    def __init__(self, g_channels: int, x_channels: int, inner: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(x_channels, inner, 2, stride=2, bias=False)
        self.phi = nn.Conv2d(g_channels, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        theta = self.theta(x)
        phi = F.interpolate(self.phi(g), size=theta.shape[2:], mode="bilinear")
        alpha = torch.sigmoid(self.psi(F.relu(theta + phi)))
        return F.interpolate(alpha, size=x.shape[2:], mode="bilinear") * x


class AttentionUNet(nn.Module):
    """Oktay et al. 2018 in two styles: gates on the finer grid with batch normalisation, or on the coarser grid."""

    def __init__(self, grid: bool = False, in_channels: int = 2, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.grid = grid
        widths = (width, 2 * width, 4 * width)
        ins = (in_channels, *widths)
        self.encoders = nn.ModuleList(conv_bn_relu(a, b) for a, b in itertools.pairwise(ins))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.gates = nn.ModuleList(
            GridGate(b, a, a) if grid else Gate(a, a, a // 2) for a, b in itertools.pairwise(widths)
        )
        self.decoders = nn.ModuleList(conv_bn_relu(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = skips.pop()
        for k in reversed(range(len(self.ups))):
            up = self.ups[k](x)
            skip = self.gates[k](skips[k], x) if self.grid else self.gates[k](g=up, x=skips[k])
            x = self.decoders[k](torch.cat([skip, up], 1))
        return self.head(x)
