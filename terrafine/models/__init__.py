"""Networks: plain torch, from raw sensor numbers to logits."""

from terrafine.models.build import build_network, changed_channels
from terrafine.models.channels import Channels
from terrafine.models.describe import describe, describe_spec
from terrafine.models.fcdensenet import FCDenseNet
from terrafine.models.hrnet import HRNet
from terrafine.models.layers import Network
from terrafine.models.raw import RawInput, RawModel
from terrafine.models.unet import UNet

__all__ = [
    "Channels",
    "FCDenseNet",
    "HRNet",
    "Network",
    "RawInput",
    "RawModel",
    "UNet",
    "build_network",
    "changed_channels",
    "describe",
    "describe_spec",
]
