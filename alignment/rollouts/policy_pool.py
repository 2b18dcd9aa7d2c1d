"""Several policies at once, in the memory of one: every adapter of a run sits on the same base weights."""

from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from alignment.chat import load_tokenizer
from alignment.models.adapter_kinds.soft_prompt import SoftPromptModel
from alignment.models.adapters import check_base, is_adapter, load_adapter
from alignment.models.families import stop_ids
from alignment.models.load import Policy, load_policy
from alignment.models.weights import require_finite
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact
from alignment.rollouts.transformers_engine import TransformersEngine

BARE = "base"  # no adapter switched on


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that is ready to answer."""

    model: Policy
    tokenizer: PreTrainedTokenizerBase
    stop_ids: set[int]

    def engine(self, batch_size: int) -> TransformersEngine:
        """Draws its answers, ``batch_size`` at a time."""
        return TransformersEngine(self.model, self.tokenizer, stop_ids=self.stop_ids, batch_size=batch_size)


class PolicyPool:
    """Loads each policy when it is first used, and none twice.

    The base model and all adapters of a kind on it are one model whose adapters are switched on and off; so only one
    of them can be in use at a time. Adapters of another kind are on a base of their own. Policies that are whole
    weights are kept beside it until :meth:`keep_only` lets them go.
    """

    def __init__(self, base: Artifact, run: RunSettings) -> None:
        self._base, self._run = base, run
        self._shared: dict[str, Policy] = {}  # by the kind of their adapters
        self._active: dict[str, str | None] = {}  # the adapter that is switched on; None where that is not known
        self._whole: dict[str, Policy] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    @torch.inference_mode(False)  # what is loaded for one who measures is used by others, whose weights have to switch
    def use(self, artifact: Artifact) -> LoadedPolicy:
        """The policy in evaluation mode, good until the next call.

        Raises StageError for an adapter that was made on another base.
        """
        if is_adapter(artifact):
            kind = str(PeftConfig.from_pretrained(artifact.path).peft_type.value)
            model: Policy = self._load_adapter(artifact, kind)
            self._switch(kind, _adapter_name(artifact))
        elif artifact.digest == self._base.digest:
            kind = next(iter(self._shared), BARE)
            model = self._load_base(kind)
            self._switch(kind, BARE)
        else:
            model = self._load_whole(artifact)
        tokenizer = self.tokenizer(artifact)
        return LoadedPolicy(model, tokenizer, stop_ids(model, tokenizer))

    def keep_only(self, *artifacts: Artifact) -> None:
        """Frees the whole-weight policies that are not among ``artifacts``."""
        wanted = {artifact.digest for artifact in artifacts}
        self._whole = {digest: model for digest, model in self._whole.items() if digest in wanted}

    def _load_whole(self, artifact: Artifact) -> Policy:
        if artifact.digest not in self._whole:
            self._whole[artifact.digest], _ = load_policy(artifact, self._base, self._run)
        return self._whole[artifact.digest]

    def _load_base(self, kind: str) -> Policy:
        if kind not in self._shared:
            bare = self._shared.pop(BARE, None)  # one that no adapter was put on yet
            self._shared[kind] = load_policy(self._base, self._base, self._run)[0] if bare is None else bare
            self._active[kind] = BARE
        return self._shared[kind]

    def _load_adapter(self, artifact: Artifact, kind: str) -> PeftModel:
        check_base(artifact, self._base, self._run.model.quantise)
        model, name = self._load_base(kind), _adapter_name(artifact)
        if isinstance(model, PeftModel) and name in model.peft_config:
            return model
        device = model.device
        if isinstance(model, PeftModel):
            model.load_adapter(artifact.path, adapter_name=name, torch_device=str(device))
        else:
            model = load_adapter(model, artifact.path, name)
        self._shared[kind] = model.to(device).eval()
        added = ((key, value) for key, value in model.named_parameters() if name in key.split("."))
        require_finite(added, str(artifact.ref()))
        self._active[kind] = None
        return model

    def _switch(self, kind: str, name: str) -> None:
        """Switches one adapter on, or all off. Walking all layers takes a while, so only where it changes something.

        PEFT's own ``disable_adapter`` first collects every layer's status, which costs as much as a short forward pass.
        """
        model = self._shared[kind]
        if name == self._active[kind] or not isinstance(model, PeftModel):
            return
        if isinstance(model, SoftPromptModel):
            model.switch(on=name != BARE)
        elif name == BARE:
            model.base_model.disable_adapter_layers()
        else:
            model.base_model.enable_adapter_layers()
        if name != BARE:
            model.set_adapter(name, inference_mode=True)
        self._active[kind] = name

    def tokenizer(self, artifact: Artifact) -> PreTrainedTokenizerBase:
        """A policy's tokenizer, whether the policy is in use or not."""
        if artifact.digest not in self._tokenizers:
            template = self._run.model.chat_template if artifact.name == self._base.name else None
            self._tokenizers[artifact.digest] = load_tokenizer(artifact.path, template)
        return self._tokenizers[artifact.digest]


def _adapter_name(artifact: Artifact) -> str:
    return f"adapter-{artifact.digest[:16]}"
