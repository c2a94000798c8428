"""Inference for people: embed pictures and texts, say whether they match, answer questions.

Each pipeline takes a model folder, a run's folder, or objects; then pictures as paths, bytes, PIL pictures or drawings,
one or many. Texts and pictures are prepared as the tasks prepare them for evaluation.
"""

from evle.pipelines.answering import VQAPipeline
from evle.pipelines.chat import ChatEndpoint
from evle.pipelines.embedding import EmbeddedImages, EmbedPipeline
from evle.pipelines.language import LanguageModel, LanguageVQAPipeline
from evle.pipelines.loading import PROCESSORS, load_model, model_folder, text_options
from evle.pipelines.local_models import LocalCaptioner, LocalLanguageModel
from evle.pipelines.matching import MatchPipeline
from evle.pipelines.pipeline import Images, Pipeline, Texts, as_images, as_texts, pairs

__all__ = [
    "PROCESSORS",
    "ChatEndpoint",
    "EmbedPipeline",
    "EmbeddedImages",
    "Images",
    "LanguageModel",
    "LanguageVQAPipeline",
    "LocalCaptioner",
    "LocalLanguageModel",
    "MatchPipeline",
    "Pipeline",
    "Texts",
    "VQAPipeline",
    "as_images",
    "as_texts",
    "load_model",
    "model_folder",
    "pairs",
    "text_options",
]
