"""Public projects' networks as they name and order their layers, rewritten: what a user's checkpoint comes from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that no two layers share; outputs stay in a sensible range."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(17)
        elif tensor.dim() > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if name.endswith("weight") else -0.5))
    return network.eval()


def conv(a: int, b: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, stride, padding=size // 2, groups=groups, bias=False)


class Basic(nn.Module):
    """conv1, bn1, conv2, bn2 and a shortcut that `style` names and places."""

    def __init__(self, a: int, b: int, stride: int, style: str) -> None:
        super().__init__()
        self.style = style
        self.stride = stride
        wanted = (stride != 1 or a != b) and style != "option A"
        if style == "shortcut first" and wanted:
            self.downsample = nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b))
        if style == "norms last":
            self.conv1, self.conv2 = conv(a, b, 3, stride), conv(b, b, 3)
            if wanted:
                self.skip_conv = conv(a, b, 1, stride)
                self.skip_bn = nn.BatchNorm2d(b)
            self.bn1, self.bn2 = nn.BatchNorm2d(b), nn.BatchNorm2d(b)
        elif style == "nameless":  # only the order of definition tells the shortcut's normalisation
            if wanted:
                self.a, self.b = conv(a, b, 1, stride), nn.BatchNorm2d(b)
            self.c, self.d, self.e, self.f = conv(a, b, 3, stride), nn.BatchNorm2d(b), conv(b, b, 3), nn.BatchNorm2d(b)
        else:
            self.conv1, self.bn1 = conv(a, b, 3, stride), nn.BatchNorm2d(b)
            self.conv2, self.bn2 = conv(b, b, 3), nn.BatchNorm2d(b)
        if style in ("plain", "late relu") and wanted:
            self.downsample = nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b))
        self.wanted = wanted

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "late relu":
            x = F.relu(x)
        if self.style == "nameless":
            y = self.f(self.e(F.relu(self.d(self.c(x)))))
            return F.relu(y + (self.b(self.a(x)) if self.wanted else x))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.style == "norms last" and self.wanted:
            x = self.skip_bn(self.skip_conv(x))
        elif self.style == "option A" and y.shape != x.shape:
            quarter = y.shape[1] // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)
        elif self.wanted:
            x = self.downsample(x)
        return y + x if self.style == "late relu" else F.relu(y + x)


class ThreeStages(nn.Module):
    """CIFAR ResNets of several projects; `last` is what they call the linear layer."""

    def __init__(self, depth: int, style: str, last: str = "fc", classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.style, self.last = style, last
        if style == "norms last":  # and everything else in an odd order, too
            setattr(self, last, nn.Linear(4 * width, classes))
        self.conv1 = conv(3, width, 3)
        if style != "norms last":
            self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage in range(3):
            blocks = []
            for block in range((depth - 2) // 6):
                blocks.append(Basic(before, width * 2**stage, 2 if stage and not block else 1, style))
                before = width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        if style == "norms last":
            self.bn1 = nn.BatchNorm2d(width)
        else:
            setattr(self, last, nn.Linear(before, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = x if self.style == "late relu" else F.relu(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(x) if self.style == "late relu" else x
        return getattr(self, self.last)(x.mean((2, 3)))


class Residual(nn.Module):
    """residual_function and shortcut as Sequentials, the activation outside."""

    def __init__(self, a: int, b: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        h = b // 4
        narrow = [conv(a, h, 1), nn.BatchNorm2d(h), nn.ReLU(), conv(h, h, 3, stride), nn.BatchNorm2d(h), nn.ReLU()]
        plain = [conv(a, b, 3, stride), nn.BatchNorm2d(b), nn.ReLU(), conv(b, b, 3), nn.BatchNorm2d(b)]
        layers = [*narrow, conv(h, b, 1), nn.BatchNorm2d(b)] if bottleneck else plain
        self.residual_function = nn.Sequential(*layers)
        self.shortcut = nn.Sequential()
        if stride != 1 or a != b:
            self.shortcut = nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual_function(x) + self.shortcut(x))


class FourStages(nn.Module):
    """conv1 as a Sequential, then conv2_x to conv5_x."""

    def __init__(self, blocks: tuple[int, ...], bottleneck: bool, width: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        before = width
        for stage, count in enumerate(blocks):
            members = []
            for block in range(count):
                out = width * 2**stage * (4 if bottleneck else 1)
                members.append(Residual(before, out, 2 if stage and not block else 1, bottleneck))
                before = out
            setattr(self, f"conv{stage + 2}_x", nn.Sequential(*members))
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv5_x(self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WideBlock(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(a)
        self.conv1 = conv(a, b, 3, stride)
        self.bn2 = nn.BatchNorm2d(b)
        self.conv2 = conv(b, b, 3)
        self.convShortcut = conv(a, b, 1, stride) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        x = self.convShortcut(y) if self.convShortcut else x
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class WideGroup(nn.Module):
    def __init__(self, a: int, b: int, stride: int, n: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(WideBlock(b if i else a, b, 1 if i else stride) for i in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Wide(nn.Module):
    """WRN: block1 to block3 with `layer` inside, the last normalisation called bn1."""

    def __init__(self, depth: int, k: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = conv(3, 16, 3)
        n = (depth - 4) // 6
        self.block1 = WideGroup(16, 16 * k, 1, n)
        self.block2 = WideGroup(16 * k, 32 * k, 2, n)
        self.block3 = WideGroup(32 * k, 64 * k, 2, n)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class Vgg(nn.Module):
    """VGG-11 without its last three poolings: block0 to block4, classifier."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        before = 3
        for stage, (count, factor) in enumerate(((1, 1), (1, 2), (2, 4), (2, 8), (2, 8))):
            layers: list[nn.Module] = []
            for _ in range(count):
                out = width * factor
                layers += [nn.Conv2d(before, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                before = out
            setattr(self, f"block{stage}", nn.Sequential(*layers))
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.block0(x), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        return self.classifier(self.block4(self.block3(x)).mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self, a: int, b: int, t: int, stride: int) -> None:
        super().__init__()
        h = a * t
        self.add = stride == 1 and a == b
        self.conv = nn.Sequential(
            *(conv(a, h, 1), nn.BatchNorm2d(h), nn.ReLU(), conv(h, h, 3, stride, h), nn.BatchNorm2d(h), nn.ReLU()),
            *(conv(h, b, 1), nn.BatchNorm2d(b)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.add else self.conv(x)


class MobileV2(nn.Module):
    """conv1, blocks by group and position, conv2, classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())
        table = (
            *((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2)),
            (6, 160, 1, 1),
        )
        before, groups = 16, []
        for t, c, n, s in table:
            groups.append(nn.Sequential(*(Inverted(c if i else before, c, t, 1 if i else s) for i in range(n))))
            before = c
        self.blocks = nn.ModuleList(groups)
        self.conv2 = nn.Sequential(conv(before, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        return self.classifier(self.conv2(x).mean((2, 3)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


class Split(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.conv1, self.bn1 = conv(h, h, 1), nn.BatchNorm2d(h)
        self.conv2, self.bn2 = conv(h, h, 3, 1, h), nn.BatchNorm2d(h)
        self.conv3, self.bn3 = conv(h, h, 1), nn.BatchNorm2d(h)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        b = F.relu(self.bn1(self.conv1(b)))
        b = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(b)))))
        return shuffled(torch.cat([a, b], 1), 2)


class Down(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        h = b // 2
        self.conv1, self.bn1 = conv(a, a, 3, 2, a), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = conv(a, h, 1), nn.BatchNorm2d(h)
        self.conv3, self.bn3 = conv(a, h, 1), nn.BatchNorm2d(h)
        self.conv4, self.bn4 = conv(h, h, 3, 2, h), nn.BatchNorm2d(h)
        self.conv5, self.bn5 = conv(h, h, 1), nn.BatchNorm2d(h)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffled(torch.cat([left, right], 1), 2)


class ShuffleTwo(nn.Module):
    """conv1, layer1 to layer3, conv2, linear, every layer by its number."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        self.layer1 = nn.Sequential(Down(24, 116), *(Split(116) for _ in range(3)))
        self.layer2 = nn.Sequential(Down(116, 232), *(Split(232) for _ in range(7)))
        self.layer3 = nn.Sequential(Down(232, 464), *(Split(464) for _ in range(3)))
        self.conv2, self.bn2 = conv(464, 1024, 1), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))
