"""A tokenizer of a corpus: byte-level BPE with the special tokens and the template of a chat."""

from pathlib import Path

from alignment.chat import load_tokenizer
from alignment.data.corpus import read_corpus
from alignment.errors import StageError
from alignment.recipe.stages.pretraining.tokenizer import TokenizerStage
from alignment.stage import StageContext, StageResult
from alignment.training.pretraining.bpe import train_tokenizer
from alignment.training.pretraining.rows import encode_document


def run(settings: TokenizerStage, context: StageContext) -> StageResult:
    """Trains it on all documents. Raises StageError where it does not give a document back as it was."""
    corpus = read_corpus(context.data["corpus"])
    template = context.run.model.chat_template
    with context.working():
        tokenizer = train_tokenizer(
            settings, corpus.documents, None if template is None else Path(template).read_text("utf-8")
        )
        tokenizer.save_pretrained(context.output)
    saved = load_tokenizer(context.output)  # refuses a template that holds no conversation
    size = tokens = 0
    for document in corpus.documents:
        ids = encode_document(saved, document)
        if saved.decode(ids[:-1], clean_up_tokenization_spaces=False) != document:
            raise StageError(f"the tokenizer does not give this text back: {document[:60]!r}")
        size, tokens = size + len(document.encode()), tokens + len(ids)
    metrics = {
        "vocabulary": float(len(saved)),
        "bytes_per_token": size / tokens,
        "documents": float(len(corpus.documents)),
        "duplicates": float(corpus.duplicates),
        "corpus_tokens": float(tokens),
    }
    return StageResult("tokenizer", metrics)
