"""VLE's models, registered with transformers' Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from evle.models.vle.configuration import VLEConfig
from evle.models.vle.heads import VLEForITM, VLEForMLM, VLEForNLVR2, VLEForPBC, VLEForRetrieval, VLEForVQA
from evle.models.vle.modeling import VLEModel, VLEOutput
from evle.models.vle.pretraining import VLEForPreTraining
from evle.models.vle.processing import VLEProcessor
from evle.models.vle.vcr import VLEForVCRQ2A, VLEForVCRQA2R

AutoConfig.register(VLEConfig.model_type, VLEConfig)
AutoModel.register(VLEConfig, VLEModel)
AutoModelForMaskedLM.register(VLEConfig, VLEForMLM)
AutoModelForPreTraining.register(VLEConfig, VLEForPreTraining)
AutoModelForVisualQuestionAnswering.register(VLEConfig, VLEForVQA)
AutoProcessor.register(VLEConfig, VLEProcessor)

__all__ = [
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
]
