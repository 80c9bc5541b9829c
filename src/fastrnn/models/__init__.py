"""Complete models on top of the layers, each readable alone."""

from fastrnn.models.charlm import CharLM
from fastrnn.models.corpus import Corpus, python_stdlib, text_file
from fastrnn.models.training import Progress, Settings, Watch

__all__ = ["CharLM", "Corpus", "Progress", "Settings", "Watch", "python_stdlib", "text_file"]
