"""The two heads of a retentive decoder: language modeling, with generation, and classification."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from retnet.kernels import Kernels
from retnet.models.configuration import RetentionConfig
from retnet.models.decoder import DecoderModel
from retnet.models.loss import causal_lm_loss
from retnet.models.pretrained import RetentionPreTrainedModel
from retnet.models.state import RetentionCache


class DecoderForCausalLM(RetentionPreTrainedModel, GenerationMixin):
    """The decoder with a language modeling head."""

    model_class: ClassVar[type[DecoderModel]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RetentionConfig, kernels: Kernels | None = None) -> None:
        """kernels: chosen by `select_kernels`; None takes what is best on the CPU."""
        super().__init__(config)
        self.model = self.model_class(config, kernels)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: RetentionCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        forward_mode: str | None = None,
        recurrent_chunk_size: int | None = None,
        logits_to_keep: int | Tensor = 0,
        segment_start: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """As `DecoderModel.forward`, plus logits [B, T, vocabulary] and, with targets, the loss.

        labels [B, T]: the input ids, shifted here (-100: ignored); or shift_labels [B, T]: each
        position's target itself. The loss is the mean over targets, or their sum /
        num_items_in_batch. logits_to_keep: only the last so many positions' logits (0: all), or the
        positions themselves.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            forward_mode=forward_mode,
            recurrent_chunk_size=recurrent_chunk_size,
            segment_start=segment_start,
        )
        keep = (
            slice(-logits_to_keep or None, None)
            if isinstance(logits_to_keep, int)
            else logits_to_keep
        )
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        loss = None
        if shift_labels is not None:
            # The z-loss steadies training; an evaluation's loss is comparable without it.
            z_loss_coeff = self.config.z_loss_coeff if self.training else 0.0
            loss = causal_lm_loss(logits, shift_labels, num_items_in_batch, z_loss_coeff)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return (
            False  # the first forward pass makes the state; there is nothing to allocate before it
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: RetentionCache | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict:
        """The prompt goes through the config's form at once; what follows is decoded
        recurrently."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if past_key_values is not None and not is_first_iteration:
            inputs["forward_mode"] = "recurrent"
        inputs.pop("position_ids", None)  # positions follow from the state and the mask
        return inputs


class DecoderForSequenceClassification(RetentionPreTrainedModel):
    """The decoder with a classification head on the last real token."""

    model_class: ClassVar[type[DecoderModel]]

    def __init__(self, config: RetentionConfig, kernels: Kernels | None = None) -> None:
        """kernels: chosen by `select_kernels`; None takes what is best on the CPU."""
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.model_class(config, kernels)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """As `DecoderModel.forward`; logits [B, labels], read at each row's last real token: the
        last one that the mask keeps or, without a mask, the last one that is not `pad_token_id`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        last = self.last_token(hidden, input_ids, attention_mask)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=None, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def last_token(
        self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        """Index [B] of each row's last real token."""
        batch, time = hidden.shape[:2]
        if attention_mask is not None:
            real = attention_mask[:, -time:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        elif batch == 1:
            real = torch.ones(1, time, dtype=torch.bool, device=hidden.device)
        else:
            raise ValueError(
                f"a batch of {batch} needs an attention_mask or config.pad_token_id to find each "
                "row's end"
            )
        return (torch.arange(time, device=hidden.device) * real).argmax(dim=1)
