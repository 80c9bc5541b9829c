"""Complete models on top of the layers, each readable alone."""

from fastrnn.models.charlm import CharLM

__all__ = ["CharLM"]
