"""Inference pipelines: embed, classify, match, compare, answer, localise and reason about images and texts.

Each pipeline takes a run folder, a model folder, a hub name, or objects; then images as paths, bytes, PIL images or
drawings, one or many. A task prepares texts and images as it does for evaluation. The classes whose names begin with
VLEFor are those of VLE's release, with its arguments and results.
"""

from evle.data.requests import Images, Texts, as_images, as_texts, pairs
from evle.pipelines.answering import VQAPipeline
from evle.pipelines.classifying import ClassifyPipeline
from evle.pipelines.embedding import EmbeddedImages, EmbedPipeline
from evle.pipelines.explaining import ExplainPipeline
from evle.pipelines.filtering import Scored, score_pairs
from evle.pipelines.language import ChatEndpoint, LanguageModel, LanguageVQAPipeline, LocalCaptioner, LocalLanguageModel
from evle.pipelines.localising import LocalisePipeline, Location
from evle.pipelines.matching import ComparePipeline, MatchPipeline
from evle.pipelines.pipeline import Pipeline
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
    "ClassifyPipeline",
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
    "Scored",
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
    "score_pairs",
]
