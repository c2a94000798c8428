"""VLE's models, registered with transformers' Auto classes on import (`evle.registration` enters them by name)."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from evle.models.vle.configuration import VLEConfig
from evle.models.vle.heads import VLEForITM, VLEForMLM, VLEForNLVR2, VLEForPBC, VLEForRetrieval, VLEForVQA
from evle.models.vle.modeling import VLEModel
from evle.models.vle.outputs import VLEOutput
from evle.models.vle.pretraining import VLEForPreTraining
from evle.models.vle.processing import VLEProcessor
from evle.models.vle.vcr import VLEForVCRQ2A, VLEForVCRQA2R

AutoConfig.register(VLEConfig.model_type, VLEConfig, exist_ok=True)
AutoModel.register(VLEConfig, VLEModel, exist_ok=True)
AutoModelForMaskedLM.register(VLEConfig, VLEForMLM, exist_ok=True)
AutoModelForPreTraining.register(VLEConfig, VLEForPreTraining, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(VLEConfig, VLEForVQA, exist_ok=True)
AutoModelForZeroShotImageClassification.register(VLEConfig, VLEForRetrieval, exist_ok=True)
AutoProcessor.register(VLEConfig, VLEProcessor, exist_ok=True)

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
