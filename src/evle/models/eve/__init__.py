"""EVE's models, registered with transformers' Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from evle.models.eve.configuration import EVEConfig
from evle.models.eve.heads import EVEForNLVR2, EVEForRetrieval, EVEForVQA
from evle.models.eve.modeling import EVEModel, EVEOutput
from evle.models.eve.pretraining import EVEForPreTraining
from evle.models.eve.processing import EVEProcessor

AutoConfig.register(EVEConfig.model_type, EVEConfig)
AutoModel.register(EVEConfig, EVEModel)
AutoModelForPreTraining.register(EVEConfig, EVEForPreTraining)
AutoModelForVisualQuestionAnswering.register(EVEConfig, EVEForVQA)
AutoProcessor.register(EVEConfig, EVEProcessor)

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
