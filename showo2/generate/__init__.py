"""Pictures and answers from a Show-o2 model."""

from showo2.generate.pipeline import Showo2Pipeline
from showo2.generate.sampler import Sampling

__all__ = ["Sampling", "Showo2Pipeline"]
