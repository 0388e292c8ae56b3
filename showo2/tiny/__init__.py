"""The embedded default: a world of coloured shapes, and small real parts that were trained on it."""

from showo2.tiny.shipped import PARTS, resolve

__all__ = ["PARTS", "resolve"]
