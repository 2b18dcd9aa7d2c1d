"""Byte-level BPE, trained on a corpus by the library ``tokenizers``.

Texts are split as GPT-2's are (Radford et al. 2019), and pairs of tokens are merged by their counts, the more frequent
first and equal counts in the order of their numbers: the same documents in any order make the same tokenizer.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignment.recipe.stages.pretraining.tokenizer import TokenizerStage

CHATML = (
    "{% for message in messages %}"
    "{{ 'START' + message['role'] + '\\n' + message['content'] + 'END' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'STARTassistant\\n' }}{% endif %}"
)


def train_tokenizer(
    settings: TokenizerStage, documents: Iterable[str], chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens that ``settings`` names and a chat template: ChatML, unless one is given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        min_frequency=settings.min_frequency,
        special_tokens=settings.all_special(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    template = CHATML.replace("START", settings.special_tokens[0]).replace("END", settings.eos_token)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=settings.eos_token,
        pad_token=settings.pad_token,
        additional_special_tokens=list(settings.special_tokens),
        clean_up_tokenization_spaces=False,
        chat_template=chat_template or template,
    )
