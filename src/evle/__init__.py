"""evle: vision-language encoders EVE and VLE, from raw data to answers.

Names are imported when they are first used: `import evle` costs no torch.

>>> import evle
>>> model = evle.EVEModel(evle.EVEConfig.from_preset("eve-tiny"))
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

FACE = {
    "EVEConfig": "evle.models.eve",
    "EVEForNLVR2": "evle.models.eve",
    "EVEForPreTraining": "evle.models.eve",
    "EVEForRetrieval": "evle.models.eve",
    "EVEForVQA": "evle.models.eve",
    "EVEModel": "evle.models.eve",
    "EVEProcessor": "evle.models.eve",
    "VLEConfig": "evle.models.vle",
    "VLEForITM": "evle.models.vle",
    "VLEForMLM": "evle.models.vle",
    "VLEForNLVR2": "evle.models.vle",
    "VLEForPBC": "evle.models.vle",
    "VLEForPreTraining": "evle.models.vle",
    "VLEForRetrieval": "evle.models.vle",
    "VLEForVCRQ2A": "evle.models.vle",
    "VLEForVCRQA2R": "evle.models.vle",
    "VLEForVQA": "evle.models.vle",
    "VLEModel": "evle.models.vle",
    "VLEProcessor": "evle.models.vle",
    "CaptionSample": "evle.data.samples",
    "NLVR2Sample": "evle.data.samples",
    "VCRSample": "evle.data.samples",
    "VQASample": "evle.data.samples",
    "AnswerChoicePipeline": "evle.pipelines",
    "ChatEndpoint": "evle.pipelines",
    "ComparePipeline": "evle.pipelines",
    "EmbedPipeline": "evle.pipelines",
    "LanguageVQAPipeline": "evle.pipelines",
    "LocalCaptioner": "evle.pipelines",
    "LocalLanguageModel": "evle.pipelines",
    "LocalisePipeline": "evle.pipelines",
    "MatchPipeline": "evle.pipelines",
    "ReasonChoicePipeline": "evle.pipelines",
    "VLEForITMPipeline": "evle.pipelines",
    "VLEForPBCPipeline": "evle.pipelines",
    "VLEForVCRQ2APipeline": "evle.pipelines",
    "VLEForVCRQA2RPipeline": "evle.pipelines",
    "VLEForVQAPipeline": "evle.pipelines",
    "VQAPipeline": "evle.pipelines",
    "ImageIndex": "evle.search",
    "RunConfig": "evle.run.config",
    "read_recipe": "evle.run.config",
    "train": "evle.run.stages",
    "evaluate": "evle.run.evaluation",
    "EvleError": "evle.errors",
}
"""Each public name and the module it is found in."""

__all__ = [*FACE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module 'evle' has no attribute {name!r}")
    value = getattr(import_module(FACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
