"""ResNet-32 for 32 x 32 images, as in the CIFAR experiments of the long-tail papers."""

import torch
import torch.nn.functional as F
from torch import nn


class ResNet32(nn.Module):
    """ResNet-32 with parameter-free shortcuts (He et al., CVPR 2016, section 4.2, option A): 64 features.

    (batch, 3, H, W) -> (batch, 64). Three stages of five blocks with 16, 32 and 64 channels. Weights are initialized
    as in the code of LDAM (Cao et al., NeurIPS 2019): Kaiming normal for the convolutions.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # (batch, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (batch, 64, H / 4, W / 4)
        return x.mean(dim=(2, 3))  # (batch, 64)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of the parameter names of stem and blocks (`coarse`: stages), in the format of timm."""
        return {'stem': r'^conv1|bn1', 'blocks': r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and an identity shortcut, subsampled and zero-padded where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2  # zero channels on each side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and self.padding == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(in_channels, out_channels, stride)]
    blocks += [BasicBlock(out_channels, out_channels, 1) for _ in range(4)]
    return nn.Sequential(*blocks)
