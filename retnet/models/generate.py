"""Text from a model: what generation means for a model with a state, and a sample from an export.

The decoding loops are transformers' own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.generation import GenerationMode

from retnet.models.interface import current_names
from retnet.models.state import RetentionCache

NEEDS_CROPPING = {
    GenerationMode.CONTRASTIVE_SEARCH: "contrastive search (penalty_alpha with top_k)",
    GenerationMode.ASSISTED_GENERATION: "assisted generation (an assistant model, prompt lookup)",
}


class RetentionGenerationMixin(GenerationMixin):
    """`generate`: the prompt goes through the config's form at once, what follows is decoded
    recurrently, at a cost that does not depend on how much came before."""

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers' `generate`. Raises ValueError for modes that take tokens back: a state
        has no tokens to crop."""
        kwargs = current_names(kwargs)
        wanted, _ = self._prepare_generation_config(generation_config, **kwargs)
        if wanted.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={wanted.cache_implementation!r}: this model carries a "
                "state of constant size and no other cache; leave cache_implementation out, or, "
                "for one in fixed memory, pass past_key_values=RetentionCache.empty(...).fixed()"
            )
        if wanted.output_attentions or self.config.output_attentions:
            raise ValueError(
                "output_attentions: generation decodes recurrently, and only the parallel form has "
                "scores; set config.output_attentions=False and leave output_attentions out"
            )
        mode = wanted.get_generation_mode(kwargs.get("assistant_model"))
        if mode in NEEDS_CROPPING:
            raise ValueError(
                f"{NEEDS_CROPPING[mode]} tries tokens and takes them back, and a recurrent state "
                "cannot be cropped; use greedy search, sampling or beams"
            )
        return super().generate(inputs, generation_config, *args, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward pass makes the state: there is nothing to allocate before

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, mode: Any, batch: int, length: int
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, mode, batch, length)
        pieces = generation_config.prefill_chunk_size is not None
        if pieces and model_kwargs.get("past_key_values") is None:
            # transformers reads a prompt in pieces only from a cache that is there before the first
            rows = batch * max(generation_config.num_beams, generation_config.num_return_sequences)
            model_kwargs["past_key_values"] = RetentionCache.empty(self.config, rows, self.device)

    @staticmethod
    def create_masks_for_generate(
        inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """The mask of the new tokens [B, T] alone: transformers asks where a state is fixed, whose
        steps all have one shape."""
        return None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :]

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: RetentionCache | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict:
        """The arguments of the next forward pass."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if past_key_values is not None and not is_first_iteration:
            inputs["forward_mode"] = "recurrent"
        inputs.pop("position_ids", None)  # positions follow from the state and the mask
        return inputs


@torch.no_grad()
def sample(
    folder: Path, prompt_ids: list[int], new_tokens: int, seed: int, known: int
) -> list[int]:
    """Loads the model in `folder` in float32 and continues `prompt_ids` by at most `new_tokens`
    tokens, of the `known` first ones of the vocabulary: those that a tokenizer has.

    Temperature 0.8, nucleus 0.95. Returns the new ids only. The seed makes it repeatable and leaves
    the caller's random numbers alone.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = model.generate(
            torch.tensor([prompt_ids]),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
            top_k=0,
            suppress_tokens=list(range(known, model.config.vocab_size)) or None,
        )
    return ids[0, len(prompt_ids) :].tolist()
