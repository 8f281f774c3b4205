"""The whole Qwen2-VL processor for diffusers' pipelines, without torchvision, which transformers asks for."""

from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from lorakit_qwen.pictures import load_pictures


class PictureProcessor(Qwen2VLProcessor):
    """Pictures and text, and no videos: the part of Qwen2VLProcessor that needs torchvision is left out."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(source):
    """The processor in the `processor` folder of a model."""
    return PictureProcessor(load_pictures(source), source.load(Qwen2Tokenizer, "processor"))
