"""Language and captioning models of transformers in a folder on this machine, for use with VQA."""

from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from evle.data.images import open_image
from evle.data.requests import Images, as_images
from evle.errors import CheckpointError, ServiceError
from evle.models.folders import from_folder
from evle.pipelines.language.chat import Messages


class LocalLanguageModel:
    """A causal language model of transformers in a folder on this machine, decoded greedily.

    Where a chat template has no system message, the system text is put before the first question. Templates that can
    switch reasoning off have it switched off, because the reasoning would be taken for the reply.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device | None = None, max_new_tokens: int = 60):
        self.tokenizer, self.model = _load(folder, AutoModelForCausalLM, device)
        self.max_new_tokens = max_new_tokens

    def complete(self, messages: Messages) -> str:
        """The reply, by the model's own chat template where it has one. Raises ServiceError for an empty one."""
        if self.tokenizer.chat_template:
            inputs = self._by_template(messages)
        else:
            text = "\n\n".join([*(message["content"] for message in messages), "Answer:"])
            inputs = self.tokenizer(text, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        inputs.pop("token_type_ids", None)  # some tokenizers return them, few causal models accept them
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            )
        words = self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if not words:
            raise ServiceError(f"{self.model.name_or_path}: the language model replied with nothing")
        return words

    def _by_template(self, messages: Messages) -> Any:
        options: dict[str, Any] = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        options["enable_thinking"] = False  # Qwen 3's switch; templates ignore what they do not know
        try:
            return self.tokenizer.apply_chat_template(messages, **options)
        except TemplateError as error:
            refused = error
        try:
            return self.tokenizer.apply_chat_template(_without_system(messages), **options)
        except TemplateError:
            raise CheckpointError(
                f"{self.model.name_or_path}: its chat template does not take this conversation ({refused})"
            ) from refused


class LocalCaptioner:
    """An image-to-text model of transformers (BLIP, GIT, ViT-GPT2 ...) in a folder on this machine."""

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        max_new_tokens: int = 40,
        batch_size: int = 8,
    ):
        self.tokenizer, self.model = _load(folder, AutoModelForImageTextToText, device)
        self.image_processor = from_folder(AutoImageProcessor, folder)
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def __call__(self, images: Images) -> list[str]:
        """A caption of each image. Raises SampleError for one that cannot be read."""
        sources, captions = as_images(images), []
        for start in range(0, len(sources), self.batch_size):
            opened = [open_image(source) for source in sources[start : start + self.batch_size]]
            pixels = self.image_processor(images=opened, return_tensors="pt")["pixel_values"].to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(pixel_values=pixels, max_new_tokens=self.max_new_tokens, do_sample=False)
            captions += [words.strip() for words in self.tokenizer.batch_decode(output, skip_special_tokens=True)]
        return captions


def _without_system(messages: Messages) -> Messages:
    """The conversation with the system's text put before the user's first message."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    first, *rest = (message for message in messages if message["role"] != "system")
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *rest]


def _load(folder: str | Path, models: Any, device: str | torch.device | None) -> tuple[Any, Any]:
    """The tokenizer and the model in `folder`, in evaluation mode on `device`, by default an accelerator's."""
    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a model folder of transformers (no config.json)")
    try:
        tokenizer = from_folder(AutoTokenizer, folder)
        model = from_folder(models, folder)
    except Exception as error:  # from_pretrained raises a dozen kinds on damaged or foreign files, none of them ours
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{folder}: cannot be loaded as {models.__name__} ({reason})") from error
    device = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return tokenizer, model.to(device).eval()
