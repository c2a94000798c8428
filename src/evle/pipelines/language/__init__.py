"""Answers in sentences: a VQA model, a captioner and a language model together."""

from evle.pipelines.language.answering import LanguageModel, LanguageVQAPipeline
from evle.pipelines.language.chat import ChatEndpoint
from evle.pipelines.language.local_models import LocalCaptioner, LocalLanguageModel

__all__ = ["ChatEndpoint", "LanguageModel", "LanguageVQAPipeline", "LocalCaptioner", "LocalLanguageModel"]
