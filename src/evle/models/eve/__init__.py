"""EVE's models, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering

from evle.models.eve.configuration import EVEConfig
from evle.models.eve.heads import EVEForNLVR2, EVEForRetrieval, EVEForVQA
from evle.models.eve.modeling import EVEModel, EVEOutput
from evle.models.eve.pretraining import EVEForPreTraining

AutoConfig.register(EVEConfig.model_type, EVEConfig)
AutoModel.register(EVEConfig, EVEModel)
AutoModelForPreTraining.register(EVEConfig, EVEForPreTraining)
AutoModelForVisualQuestionAnswering.register(EVEConfig, EVEForVQA)

__all__ = ["EVEConfig", "EVEForNLVR2", "EVEForPreTraining", "EVEForRetrieval", "EVEForVQA", "EVEModel", "EVEOutput"]
