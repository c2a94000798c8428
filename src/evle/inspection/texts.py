"""The texts of a sample that a tokenizer should know."""

from evle.data.samples import CaptionSample, NLVR2Sample, Sample, VCRSample, VQASample
from evle.errors import DataError
from evle.transforms.tagged import object_names, spoken


def sample_texts(sample: Sample) -> list[str]:
    """The texts of one sample that a tokenizer should know."""
    match sample:
        case CaptionSample():
            return [*sample.captions, *sample.tags]
        case VQASample():
            return [sample.question]
        case NLVR2Sample():
            return [sample.sentence]
        case VCRSample():
            names = object_names([box.label for box in sample.objects])
            parts = (sample.question, *sample.answer_choices, *sample.rationale_choices)
            return [" ".join(word for word, _ in spoken(part, names)) for part in parts]
    raise DataError(f"{sample.key}: no tokenizer can be trained on samples of the kind {type(sample).__name__}")
