"""Inference for people: embed, match, compare, answer, localise and reason about images and texts.

Each pipeline takes a model folder, a run's folder, or objects; then images as paths, bytes, PIL images or drawings,
one or many. Texts and images are prepared as the tasks prepare them for evaluation. Names that begin with VLEFor are
those of VLE's release, with its arguments and results.
"""

from evle.pipelines.answering import VQAPipeline
from evle.pipelines.embedding import EmbeddedImages, EmbedPipeline
from evle.pipelines.explaining import ExplainPipeline
from evle.pipelines.language import ChatEndpoint, LanguageModel, LanguageVQAPipeline, LocalCaptioner, LocalLanguageModel
from evle.pipelines.localising import LocalisePipeline, Location
from evle.pipelines.matching import ComparePipeline, MatchPipeline
from evle.pipelines.pipeline import Images, Pipeline, Texts, as_images, as_texts, pairs
from evle.pipelines.reasoning import AnswerChoicePipeline, Choice, ReasonChoicePipeline
from evle.pipelines.released import (
    VLEForITMPipeline,
    VLEForPBCPipeline,
    VLEForVCRQ2APipeline,
    VLEForVCRQA2RPipeline,
    VLEForVQAPipeline,
)

__all__ = [
    "AnswerChoicePipeline",
    "ChatEndpoint",
    "Choice",
    "ComparePipeline",
    "EmbedPipeline",
    "EmbeddedImages",
    "ExplainPipeline",
    "Images",
    "LanguageModel",
    "LanguageVQAPipeline",
    "LocalCaptioner",
    "LocalLanguageModel",
    "LocalisePipeline",
    "Location",
    "MatchPipeline",
    "Pipeline",
    "ReasonChoicePipeline",
    "Texts",
    "VLEForITMPipeline",
    "VLEForPBCPipeline",
    "VLEForVCRQ2APipeline",
    "VLEForVCRQA2RPipeline",
    "VLEForVQAPipeline",
    "VQAPipeline",
    "as_images",
    "as_texts",
    "pairs",
]
