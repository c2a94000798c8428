"""VQA with a language model, which reads the answers of the vision model and replies with a sentence.

A caption of the image, the question and the best answers with their scores are put to a language model (VLE's
demonstration): any server that speaks OpenAI's chat protocol, or a causal language model of transformers on this
machine. Without one, the VQA answer stands alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evle.data.requests import Images, Texts, as_texts, pairs
from evle.data.samples import ImageSource
from evle.errors import DataError
from evle.pipelines.answering import VQAPipeline
from evle.pipelines.language.chat import Messages
from evle.pipelines.language.local_models import LocalCaptioner

INSTRUCTION = (
    "You answer a question about an image that you cannot see. A vision model has seen it: you are given a "
    "description of the image, where there is one, and candidate answers with the probability, from 0 to 1, that "
    "the vision model gives to each. The description and the candidates may be wrong or incomplete. Weigh them "
    "against each other and against common sense, and reply with the most reasonable answer in one short sentence, "
    "without any explanation."
)


class LanguageModel(Protocol):
    """What answers a conversation."""

    def complete(self, messages: Messages) -> str:
        """The reply, not empty, without blanks around it."""
        ...


def prompt(question: str, answers: Sequence[Mapping[str, Any]], caption: str | None = None) -> Messages:
    """The conversation that asks a language model for the answer; `answers` are {"answer", "score"}, best first.

    >>> print(prompt("What is it?", [{"answer": "cat", "score": 0.5}], "a pet")[1]["content"])
    Description of the image: a pet
    Question: What is it?
    Candidate answers:
    - cat (0.500)
    """
    lines = [f"Description of the image: {caption}"] if caption else []
    lines += [f"Question: {question}", "Candidate answers:"]
    lines += [f"- {each['answer']} ({each['score']:.3f})" for each in answers]
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": "\n".join(lines)}]


class LanguageVQAPipeline:
    """Answers in sentences: a `VQAPipeline`, and a language model that reads its answers.

    >>> ask = LanguageVQAPipeline(VQAPipeline("runs/vqa"), ChatEndpoint("http://localhost:8000/v1", "my-model"))
    ... # doctest: +SKIP
    >>> ask("a.jpg", "What is on the table?", captions="a kitchen")[0]["reply"]  # doctest: +SKIP
    'There is a bowl of fruit on the table.'
    """

    def __init__(
        self, vqa: VQAPipeline, language: LanguageModel | None = None, captioner: LocalCaptioner | None = None
    ):
        self.vqa = vqa
        self.language = language
        self.captioner = captioner

    def __call__(
        self, images: Images, questions: Texts, *, captions: Texts | None = None, top_k: int = 5
    ) -> list[dict[str, Any]]:
        """What `VQAPipeline` returns for each pair, with a "caption" and a "reply".

        `captions` describe the images, one per pair or one for all. The default is the captioner's caption, or None
        without a captioner. The reply is the language model's; without one it is the VQA answer. Raises what the
        pipeline raises, and ServiceError where an endpoint does not answer.
        """
        sources, asked = pairs(images, questions)
        results = self.vqa(sources, asked, top_k=top_k)
        rows = zip(results, self._captions(sources, captions), strict=True)
        return [{**row, "caption": caption, "reply": self._reply(row, caption)} for row, caption in rows]

    def _reply(self, row: Mapping[str, Any], caption: str | None) -> str:
        if self.language is None:
            return str(row["answer"])
        return self.language.complete(prompt(row["question"], row["answers"], caption))

    def _captions(self, sources: list[ImageSource], given: Texts | None) -> list[str | None]:
        if given is not None:
            listed: list[str | None] = [*as_texts(given)]
            if len(listed) not in (1, len(sources)):
                raise DataError(
                    f"{len(listed)} captions for {len(sources)} questions; give one per question, or one for all"
                )
            return listed if len(listed) == len(sources) else listed * len(sources)
        if self.captioner is None:
            return [None] * len(sources)
        # One image may be asked about many times; it is described once.
        unique = list({id(source): source for source in sources}.values())
        captions_of = dict(zip(map(id, unique), self.captioner(unique), strict=True))
        return [captions_of[id(source)] for source in sources]
