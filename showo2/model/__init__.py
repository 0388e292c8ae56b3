"""The Show-o2 model."""

from showo2.model.config import FlowHeadConfig, Showo2Config
from showo2.model.model import Losses, Showo2

__all__ = ["FlowHeadConfig", "Losses", "Showo2", "Showo2Config"]
