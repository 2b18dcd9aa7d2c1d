"""Several policies at once, in the memory of one: every adapter of a run sits on the same base weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from alignment.chat import load_tokenizer
from alignment.models.loading import Policy, check_base, is_adapter, load_policy, stop_ids
from alignment.recipe import Recipe
from alignment.records import Artifact


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that is ready to answer, for as long as the context that gave it lasts."""

    model: Policy
    tokenizer: PreTrainedTokenizerBase
    stop_ids: set[int]


class PolicyPool:
    """Loads each policy when it is first used, and none twice.

    The base model and all adapters on it are one model whose adapters are switched on and off; so only one of them
    can be in use at a time. Policies that are whole weights are kept beside it until :meth:`keep_only` lets them go.
    """

    def __init__(self, base: Artifact, recipe: Recipe) -> None:
        self._base, self._recipe = base, recipe
        self._shared: Policy | None = None
        self._whole: dict[str, Policy] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    @contextmanager
    def use(self, artifact: Artifact) -> Iterator[LoadedPolicy]:
        """The policy in evaluation mode. Raises StageError for an adapter that was made on another base."""
        tokenizer = self._tokenizer(artifact)
        if self._is_whole(artifact):
            model = self._load_whole(artifact)
            yield LoadedPolicy(model, tokenizer, stop_ids(model, tokenizer))
        elif not is_adapter(artifact):
            model = self._load_base()
            with model.disable_adapter() if isinstance(model, PeftModel) else _nothing():
                yield LoadedPolicy(model, tokenizer, stop_ids(model, tokenizer))
        else:
            model = self._load_adapter(artifact)
            model.set_adapter(_adapter_name(artifact), inference_mode=True)
            yield LoadedPolicy(model, tokenizer, stop_ids(model, tokenizer))

    def keep_only(self, *artifacts: Artifact) -> None:
        """Frees the whole-weight policies that are not among ``artifacts``."""
        wanted = {artifact.digest for artifact in artifacts}
        self._whole = {digest: model for digest, model in self._whole.items() if digest in wanted}

    def _is_whole(self, artifact: Artifact) -> bool:
        return not is_adapter(artifact) and artifact.digest != self._base.digest

    def _load_whole(self, artifact: Artifact) -> Policy:
        if artifact.digest not in self._whole:
            self._whole[artifact.digest], _ = load_policy(artifact, self._base, self._recipe)
        return self._whole[artifact.digest]

    def _load_base(self) -> Policy:
        if self._shared is None:
            self._shared, _ = load_policy(self._base, self._base, self._recipe)
        return self._shared

    def _load_adapter(self, artifact: Artifact) -> PeftModel:
        check_base(artifact, self._base)
        model, name = self._load_base(), _adapter_name(artifact)
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, artifact.path, adapter_name=name)
        elif name not in model.peft_config:
            model.load_adapter(artifact.path, adapter_name=name, torch_device=str(model.device))
        self._shared = model.to(model.device).eval()
        return model

    def _tokenizer(self, artifact: Artifact) -> PreTrainedTokenizerBase:
        if artifact.digest not in self._tokenizers:
            template = self._recipe.model.chat_template if artifact.name == self._base.name else None
            self._tokenizers[artifact.digest] = load_tokenizer(artifact.path, template)
        return self._tokenizers[artifact.digest]


def _adapter_name(artifact: Artifact) -> str:
    return f"adapter-{artifact.digest[:16]}"


@contextmanager
def _nothing() -> Iterator[None]:
    yield
