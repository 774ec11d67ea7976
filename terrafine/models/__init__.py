"""Networks: plain torch, from raw sensor numbers to logits."""

from terrafine.models.build import build_network
from terrafine.models.describe import describe
from terrafine.models.hrnet import HRNet
from terrafine.models.raw import RawInput, RawModel

__all__ = ["HRNet", "RawInput", "RawModel", "build_network", "describe"]
