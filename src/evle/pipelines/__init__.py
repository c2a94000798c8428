"""Inference for people: embed, match, compare, answer, localise and reason about pictures and texts.

Each pipeline takes a model folder, a run's folder, or objects; then pictures as paths, bytes, PIL pictures or drawings,
one or many. Texts and pictures are prepared as the tasks prepare them for evaluation. Names that begin with VLEFor are
those of VLE's release, with its arguments and results.
"""

from evle.pipelines.answering import VQAPipeline
from evle.pipelines.chat import ChatEndpoint
from evle.pipelines.embedding import EmbeddedImages, EmbedPipeline
from evle.pipelines.language import LanguageModel, LanguageVQAPipeline
from evle.pipelines.loading import (
    PROCESSORS,
    family_text_options,
    load_model,
    model_folder,
    read_fields,
    run_settings,
    text_options,
)
from evle.pipelines.local_models import LocalCaptioner, LocalLanguageModel
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
    "PROCESSORS",
    "AnswerChoicePipeline",
    "ChatEndpoint",
    "Choice",
    "ComparePipeline",
    "EmbedPipeline",
    "EmbeddedImages",
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
    "family_text_options",
    "load_model",
    "model_folder",
    "pairs",
    "read_fields",
    "run_settings",
    "text_options",
]
