"""evle: vision-language encoders EVE and VLE, from raw data to answers.

Names are imported when they are first used: `import evle` costs no torch. The Auto classes of transformers know both
families from then on.

>>> import evle
>>> model = evle.EVEModel(evle.EVEConfig.from_preset("eve-tiny"))
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from evle.registration import install

if TYPE_CHECKING:
    from evle.data.samples import Box, CaptionSample, NLVR2Sample, Sample, VCRSample, VQASample
    from evle.errors import CheckpointError, ConfigError, DataError, EvleError, SampleError, ServiceError
    from evle.models.eve import (
        EVEConfig,
        EVEForNLVR2,
        EVEForPreTraining,
        EVEForRetrieval,
        EVEForVQA,
        EVEModel,
        EVEOutput,
        EVEProcessor,
    )
    from evle.models.vle import (
        VLEConfig,
        VLEForITM,
        VLEForMLM,
        VLEForNLVR2,
        VLEForPBC,
        VLEForPreTraining,
        VLEForRetrieval,
        VLEForVCRQ2A,
        VLEForVCRQA2R,
        VLEForVQA,
        VLEModel,
        VLEOutput,
        VLEProcessor,
    )
    from evle.pipelines import (
        AnswerChoicePipeline,
        ChatEndpoint,
        Choice,
        ClassifyPipeline,
        ComparePipeline,
        EmbeddedImages,
        EmbedPipeline,
        ExplainPipeline,
        LanguageModel,
        LanguageVQAPipeline,
        LocalCaptioner,
        LocalisePipeline,
        LocalLanguageModel,
        Location,
        MatchPipeline,
        Pipeline,
        ReasonChoicePipeline,
        VLEForITMPipeline,
        VLEForPBCPipeline,
        VLEForVCRQ2APipeline,
        VLEForVCRQA2RPipeline,
        VLEForVQAPipeline,
        VQAPipeline,
    )
    from evle.pipelines.explaining import Explanation
    from evle.report import Report
    from evle.run.config import RunConfig, read_recipe
    from evle.run.evaluation import evaluate
    from evle.run.stages import train
    from evle.run.vcr import judge_vcr
    from evle.search import Hit, ImageIndex, build_index
    from evle.tasks.task import Evaluation, Task

__version__ = "0.1.0"

FACE = {
    # Models
    "EVEConfig": "evle.models.eve",
    "EVEForNLVR2": "evle.models.eve",
    "EVEForPreTraining": "evle.models.eve",
    "EVEForRetrieval": "evle.models.eve",
    "EVEForVQA": "evle.models.eve",
    "EVEModel": "evle.models.eve",
    "EVEOutput": "evle.models.eve",
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
    "VLEOutput": "evle.models.vle",
    "VLEProcessor": "evle.models.vle",
    # Samples
    "Box": "evle.data.samples",
    "CaptionSample": "evle.data.samples",
    "NLVR2Sample": "evle.data.samples",
    "Sample": "evle.data.samples",
    "VCRSample": "evle.data.samples",
    "VQASample": "evle.data.samples",
    # Pipelines
    "AnswerChoicePipeline": "evle.pipelines",
    "ChatEndpoint": "evle.pipelines",
    "Choice": "evle.pipelines",
    "ComparePipeline": "evle.pipelines",
    "EmbedPipeline": "evle.pipelines",
    "EmbeddedImages": "evle.pipelines",
    "ExplainPipeline": "evle.pipelines",
    "LanguageModel": "evle.pipelines",
    "LanguageVQAPipeline": "evle.pipelines",
    "LocalCaptioner": "evle.pipelines",
    "LocalLanguageModel": "evle.pipelines",
    "ClassifyPipeline": "evle.pipelines",
    "LocalisePipeline": "evle.pipelines",
    "Location": "evle.pipelines",
    "MatchPipeline": "evle.pipelines",
    "Pipeline": "evle.pipelines",
    "ReasonChoicePipeline": "evle.pipelines",
    "VLEForITMPipeline": "evle.pipelines",
    "VLEForPBCPipeline": "evle.pipelines",
    "VLEForVCRQ2APipeline": "evle.pipelines",
    "VLEForVCRQA2RPipeline": "evle.pipelines",
    "VLEForVQAPipeline": "evle.pipelines",
    "VQAPipeline": "evle.pipelines",
    "Explanation": "evle.pipelines.explaining",
    # Search
    "Hit": "evle.search",
    "ImageIndex": "evle.search",
    "build_index": "evle.search",
    # Training and evaluation
    "RunConfig": "evle.run.config",
    "read_recipe": "evle.run.config",
    "evaluate": "evle.run.evaluation",
    "train": "evle.run.stages",
    "judge_vcr": "evle.run.vcr",
    "Evaluation": "evle.tasks.task",
    "Task": "evle.tasks.task",
    "Report": "evle.report",
    # Errors
    "CheckpointError": "evle.errors",
    "ConfigError": "evle.errors",
    "DataError": "evle.errors",
    "EvleError": "evle.errors",
    "SampleError": "evle.errors",
    "ServiceError": "evle.errors",
}
"""Each public name and the module that defines it."""

__all__ = [  # noqa: RUF022  grouped as in FACE
    "__version__",
    # Models
    "EVEConfig",
    "EVEForNLVR2",
    "EVEForPreTraining",
    "EVEForRetrieval",
    "EVEForVQA",
    "EVEModel",
    "EVEOutput",
    "EVEProcessor",
    "VLEConfig",
    "VLEForITM",
    "VLEForMLM",
    "VLEForNLVR2",
    "VLEForPBC",
    "VLEForPreTraining",
    "VLEForRetrieval",
    "VLEForVCRQ2A",
    "VLEForVCRQA2R",
    "VLEForVQA",
    "VLEModel",
    "VLEOutput",
    "VLEProcessor",
    # Samples
    "Box",
    "CaptionSample",
    "NLVR2Sample",
    "Sample",
    "VCRSample",
    "VQASample",
    # Pipelines
    "AnswerChoicePipeline",
    "ChatEndpoint",
    "Choice",
    "ComparePipeline",
    "EmbedPipeline",
    "EmbeddedImages",
    "ExplainPipeline",
    "LanguageModel",
    "LanguageVQAPipeline",
    "LocalCaptioner",
    "LocalLanguageModel",
    "ClassifyPipeline",
    "LocalisePipeline",
    "Location",
    "MatchPipeline",
    "Pipeline",
    "ReasonChoicePipeline",
    "VLEForITMPipeline",
    "VLEForPBCPipeline",
    "VLEForVCRQ2APipeline",
    "VLEForVCRQA2RPipeline",
    "VLEForVQAPipeline",
    "VQAPipeline",
    "Explanation",
    # Search
    "Hit",
    "ImageIndex",
    "build_index",
    # Training and evaluation
    "RunConfig",
    "read_recipe",
    "evaluate",
    "train",
    "judge_vcr",
    "Evaluation",
    "Task",
    "Report",
    # Errors
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvleError",
    "SampleError",
    "ServiceError",
]

install()


if not TYPE_CHECKING:  # to a type checker, it would make every name an Any

    def __getattr__(name: str) -> Any:
        if name not in FACE:
            raise AttributeError(f"module 'evle' has no attribute {name!r}")
        module = FACE[name]
        if module == "evle.pipelines" and not _has_torch():
            module = "evle.exported.pipelines"  # the same pipelines, of exported models
            if name not in vars(import_module(module)):
                raise ImportError(f"evle.{name} needs torch, which is not installed; run: pip install evle")
        value = getattr(import_module(module), name)
        globals()[name] = value
        return value


def _has_torch() -> bool:
    """Whether torch can be imported; a machine that serves exported models need not have it."""
    if "torch" in sys.modules:
        return sys.modules["torch"] is not None
    return find_spec("torch") is not None


def __dir__() -> list[str]:
    return sorted(__all__)
