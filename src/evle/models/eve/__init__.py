"""EVE's models, registered with transformers' Auto classes on import (`evle.registration` enters them by name)."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from evle.models.eve.configuration import EVEConfig
from evle.models.eve.heads import EVEForNLVR2, EVEForRetrieval, EVEForVQA
from evle.models.eve.modeling import EVEModel, EVEOutput
from evle.models.eve.pretraining import EVEForPreTraining
from evle.models.eve.processing import EVEProcessor

AutoConfig.register(EVEConfig.model_type, EVEConfig, exist_ok=True)
AutoModel.register(EVEConfig, EVEModel, exist_ok=True)
AutoModelForPreTraining.register(EVEConfig, EVEForPreTraining, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(EVEConfig, EVEForVQA, exist_ok=True)
AutoModelForZeroShotImageClassification.register(EVEConfig, EVEForRetrieval, exist_ok=True)
AutoProcessor.register(EVEConfig, EVEProcessor, exist_ok=True)

__all__ = [
    "EVEConfig",
    "EVEForNLVR2",
    "EVEForPreTraining",
    "EVEForRetrieval",
    "EVEForVQA",
    "EVEModel",
    "EVEOutput",
    "EVEProcessor",
]
