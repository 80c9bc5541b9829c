"""Complete models on top of the layers, each readable alone."""

from fastrnn.models.autoencode import Autoencoder
from fastrnn.models.charlm import CharLM
from fastrnn.models.corpus import Corpus, python_stdlib, text_file
from fastrnn.models.fitting import Observer, Point, Schedule
from fastrnn.models.forecast import Forecaster
from fastrnn.models.tag import Tagger
from fastrnn.models.training import Progress, Settings, Watch
from fastrnn.models.translate import Translator

__all__ = [
    "Autoencoder", "CharLM", "Corpus", "Forecaster", "Observer", "Point", "Progress", "Schedule", "Settings", "Tagger",
    "Translator", "Watch", "python_stdlib", "text_file",
]  # fmt: skip
