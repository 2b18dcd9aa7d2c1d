"""What TRL's preference trainers share here: tokenised columns, and where their reference comes from."""

from pathlib import Path
from typing import Any

from peft import PeftModel

from alignment.models.adapters import copy_adapter
from alignment.training.response_head import add_response_head


def fill_reference(model: Any) -> None:
    """Gives TRL's reference adapter the weights of the trained one: it knows the names of those of LoRA alone."""
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        copy_adapter(model, "ref")


class Tokenised:
    """Before TRL's trainer in a class's bases: it takes the columns as they are instead of tokenising by itself."""

    model: Any
    args: Any
    accelerator: Any

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # The first call after TRL patched its own head onto the model, and before anything uses it.
        add_response_head(self.model)
        fill_reference(self.model)
        if self.accelerator.num_processes > 1:  # rank 0 writes a file that all read: where all of them can
            dataset._get_cache_file_path = lambda mark: str(Path(self.args.output_dir) / f"reference-{mark}.arrow")
        return super()._precompute_ref_logps(dataset, *args, **kwargs)  # type: ignore[misc]  # of the next base
