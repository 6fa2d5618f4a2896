"""The two heads of a retentive decoder: language modeling, with generation, and classification."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from retnet.kernels import Kernels
from retnet.kernels.linear_cross_entropy import IGNORED, linear_cross_entropy
from retnet.models.configuration import RetentionConfig
from retnet.models.decoder import DecoderModel
from retnet.models.generate import RetentionGenerationMixin
from retnet.models.interface import (
    RetentionCausalLMOutputWithPast,
    RetentionClassifierOutputWithPast,
    published_interface,
)
from retnet.models.layers import Linear
from retnet.models.loss import causal_lm_loss, per_target
from retnet.models.pretrained import RetentionPreTrainedModel
from retnet.models.state import RetentionCache


class DecoderForCausalLM(RetentionGenerationMixin, RetentionPreTrainedModel):
    """The decoder with a language modeling head."""

    model_class: ClassVar[type[DecoderModel]]
    accepts_loss_kwargs = True  # num_items_in_batch: transformers' Trainer asks
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RetentionConfig, kernels: Kernels | None = None) -> None:
        """kernels: chosen by `select_kernels`; None takes what is best on the CPU."""
        super().__init__(config)
        self.model = self.model_class(config, kernels)
        operator = kernels.cross_entropy_rows if kernels else None
        self.linear_cross_entropy = partial(linear_cross_entropy, rows_operator=operator)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @published_interface
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: RetentionCache | tuple | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        forward_mode: str | None = None,
        recurrent_chunk_size: int | None = None,
        logits_to_keep: int | Tensor = 0,
        segment_start: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        z_loss_coeff: float | None = None,
        label_smoothing: float | None = None,
    ) -> RetentionCausalLMOutputWithPast:
        """As `DecoderModel.forward`, plus logits [B, T, vocabulary] and, with targets, the loss.

        labels [B, T]: the input ids, shifted here (-100: ignored). shift_labels [B, T] in place of
        them: each position's target itself; then all logits are never made and `logits` is None.
        The loss is the mean over targets, or their sum / num_items_in_batch; z_loss_coeff and
        label_smoothing are the config's unless given. logits_to_keep: only the last so many
        positions' logits (0: all), or the positions themselves.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            forward_mode,
            recurrent_chunk_size,
            segment_start,
        )
        hidden = outputs.last_hidden_state
        config = self.config
        z_loss_coeff = config.z_loss_coeff if z_loss_coeff is None else z_loss_coeff
        smoothing = config.label_smoothing if label_smoothing is None else label_smoothing
        if labels is None and shift_labels is not None and isinstance(self.lm_head, nn.Linear):
            rows, head, targets = hidden.flatten(0, 1), self.lm_head.weight, shift_labels.flatten()
            total = self.linear_cross_entropy(rows, head, targets, z_loss_coeff, smoothing)
            loss = per_target(total, shift_labels, num_items_in_batch)
            return RetentionCausalLMOutputWithPast(loss=loss, **outputs.rest())
        last = isinstance(logits_to_keep, int)
        keep = slice(-logits_to_keep or None, None) if last else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
        loss = None
        if shift_labels is not None:
            targets = shift_labels[:, keep]
            loss = causal_lm_loss(logits, targets, num_items_in_batch, z_loss_coeff, smoothing)
        return RetentionCausalLMOutputWithPast(loss=loss, logits=logits, **outputs.rest())


class DecoderForSequenceClassification(RetentionPreTrainedModel):
    """The decoder with a classification head on the last real token."""

    model_class: ClassVar[type[DecoderModel]]
    accepts_loss_kwargs = False

    def __init__(self, config: RetentionConfig, kernels: Kernels | None = None) -> None:
        """kernels: chosen by `select_kernels`; None takes what is best on the CPU."""
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.model_class(config, kernels)
        self.score = Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @published_interface
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: RetentionCache | tuple | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        forward_mode: str | None = None,
        recurrent_chunk_size: int | None = None,
    ) -> RetentionClassifierOutputWithPast:
        """As `DecoderModel.forward`; logits [B, labels], read at each row's last real token: the
        last one that the mask keeps or, without a mask, the last one that is not `pad_token_id`.
        Padding on the left needs the mask, or it is read as text.

        labels: [B] integers (cross entropy), [B, labels] zeros and ones (binary cross entropy), or
        [B] or [B, labels] numbers (mean squared error), as config.problem_type says.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            forward_mode,
            recurrent_chunk_size,
        )
        hidden = outputs.last_hidden_state
        last = self.last_token(hidden, input_ids, attention_mask)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=None,
                labels=labels,
                pooled_logits=logits,
                config=self.config,
            )
        return RetentionClassifierOutputWithPast(loss=loss, logits=logits, **outputs.rest())

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
