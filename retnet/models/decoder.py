"""The retentive decoder that RetNet and NucleusX share: its layers and the bare model.

The architectures' own files give the classes their published names. Not here: retention itself.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from retnet.kernels import Kernels, KernelsConfig, select_kernels
from retnet.models.configuration import RetentionConfig
from retnet.models.feed_forward import FeedForward, GatedFeedForward
from retnet.models.interface import RetentionOutputWithPast, published_interface
from retnet.models.layers import Embedding
from retnet.models.legacy_cache import read_cache
from retnet.models.norms import add_and_norm, build_norm
from retnet.models.pretrained import RetentionPreTrainedModel
from retnet.models.retention import Form, MultiScaleRetention
from retnet.models.rotary import Positions, token_positions
from retnet.models.state import RetentionCache, advance


class DecoderLayer(GradientCheckpointingLayer):
    """x + retention(norm(x)), then x + ffn(norm(x)); with deepnorm norm(alpha x + f(x)) instead."""

    norm_names: ClassVar[tuple[str, str]]
    "Published names of the norms of the retention and the feed-forward."

    def __init__(self, config: RetentionConfig, kernels: Kernels, index: int) -> None:
        super().__init__()
        self.pre_norm = config.decoder_normalize_before
        self.alpha = (2 * config.num_layers) ** 0.25 if config.deepnorm else 1.0
        self.drops_paths = config.drop_path_rate > 0
        rate = config.drop_path_rate * index / max(1, config.num_layers - 1)
        # A tensor, so that the layers share one compiled graph; no buffer, which a cast or a build
        # without numbers would change; scalar_tensor, because zero.Init rounds torch.tensor's.
        self.drop_path = torch.scalar_tensor(rate, dtype=torch.float64, device="cpu")
        self.dropout = nn.Dropout(config.dropout)
        self.retention = MultiScaleRetention(config, kernels)
        self.ffn = (GatedFeedForward if config.use_glu else FeedForward)(config, kernels)
        for name in self.norm_names:
            self.add_module(name, build_norm(config, config.hidden_size, kernels))

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        state: Tensor | None,
        form: Form,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, T, D], state [B, H, K, V] or None -> x [B, T, D], and the state and scores
        that the form asks for."""
        retention_norm, ffn_norm = (getattr(self, name) for name in self.norm_names)
        seen = retention_norm(x) if self.pre_norm else x
        branch, state, scores = self.retention(seen, positions, state, form)
        branch = self.drop(branch)
        if self.pre_norm:
            x, seen = add_and_norm(ffn_norm, x, branch)
            return x + self.drop(self.ffn(seen)), state, scores
        x = retention_norm(self.alpha * x + branch)
        return ffn_norm(self.alpha * x + self.drop(self.ffn(x))), state, scores

    def drop(self, branch: Tensor) -> Tensor:
        """Dropout and, per sequence, stochastic depth (arXiv:1603.09382) on branch [B, T, D]."""
        branch = self.dropout(branch)
        if self.drops_paths and self.training:
            kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
            branch = branch * kept / (1 - self.drop_path)
        return branch


class DecoderModel(RetentionPreTrainedModel):
    """Token ids to hidden states."""

    layer_class: ClassVar[type[DecoderLayer]]
    norm_names: ClassVar[tuple[str, str]]
    "Published names of the norms after the embedding and after the last layer."

    def __init__(self, config: RetentionConfig, kernels: Kernels | None = None) -> None:
        """kernels: chosen by `select_kernels`; None takes what is best on the CPU, with the public,
        separate projections."""
        super().__init__(config)
        kernels = kernels or select_kernels(KernelsConfig(fused_projections=False))
        if not isinstance(kernels, Kernels):
            raise TypeError(
                f"kernels is a {type(kernels).__name__}; needed what select_kernels makes"
            )
        # No padding_idx: where pad is eos, it would keep the eos embedding at zero for ever.
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            self.layer_class(config, kernels, index) for index in range(config.num_layers)
        )
        for name, wanted in zip(
            self.norm_names, (config.embedding_norm, config.decoder_normalize_before), strict=True
        ):
            norm = build_norm(config, config.hidden_size, kernels) if wanted else nn.Identity()
            self.add_module(name, norm)
        self.post_init()

    @published_interface
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: RetentionCache | tuple | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        forward_mode: str | None = None,
        recurrent_chunk_size: int | None = None,
        segment_start: Tensor | None = None,
    ) -> RetentionOutputWithPast:
        """One piece of the stream.

        input_ids [B, T] or inputs_embeds [B, T, D]: the new tokens alone; attention_mask [B, T], or
        [B, past + T] (0: not in the stream, wherever it is); past_key_values: the state after
        earlier pieces, or a published implementation's cache (`legacy_cache.py`); segment_start
        [B, T]: document starts (see `retnet.kernels.reference`). use_cache: by default the config's
        in evaluation, never in training. output_attentions: also each layer's scores, which only
        the parallel form has (ValueError elsewhere). The rest is the config's unless given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, not both and not neither")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given.ndim < 2 or given.shape[1] < 1:
            raise ValueError(f"needed at least one token in [B, T], got {list(given.shape)}")
        config = self.config
        form = Form(
            forward_mode or config.forward_mode,
            config.recurrent_chunk_size if recurrent_chunk_size is None else recurrent_chunk_size,
            config.use_cache and not self.training if use_cache is None else use_cache,
            config.output_attentions if output_attentions is None else output_attentions,
            isinstance(past_key_values, RetentionCache) and past_key_values.in_place,
        )
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        x = self.embed(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        past = read_cache(past_key_values, config, x, attention_mask)
        positions, after = self.locate(x, attention_mask, past, segment_start)
        states, scores, hidden_states = [], [], []
        for index, layer in enumerate(self.layers):
            if output_hidden_states:
                hidden_states.append(x)
            x, state, score = layer(
                x, positions, None if past is None else past.states[index], form
            )
            states.append(state)
            scores.append(score)
        x = getattr(self, self.norm_names[1])(x)
        retentions = tuple(scores) if form.return_scores else None
        return RetentionOutputWithPast(
            last_hidden_state=x,
            past_key_values=advance(past, states, after, x.shape[1]) if form.return_state else None,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
            retentions=retentions,
            attentions=retentions,
        )

    def embed(self, embeddings: Tensor) -> Tensor:
        """Scale, norm and dropout on embeddings [B, T, D]."""
        if not self.config.no_scale_embedding:
            embeddings = embeddings * self.config.hidden_size**0.5
        return self.dropout(getattr(self, self.norm_names[0])(embeddings))

    def locate(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        past: RetentionCache | None,
        segment_start: Tensor | None,
    ) -> tuple[Positions, Tensor]:
        """Where the tokens of x [B, T, D] stand, and each row's position [B] after them."""
        batch, time = x.shape[:2]
        mask = None
        if attention_mask is not None:
            shape = attention_mask.shape
            if shape != (batch, time):  # of a fixed state, reading the length waits
                past_too = time if past is None else time + past.length
                if shape != (batch, past_too):
                    raise ValueError(
                        f"attention_mask needs shape [{batch}, {time}], or [{batch}, {past_too}] "
                        f"with the past in front, got {list(shape)}"
                    )
            mask = attention_mask[:, -time:].bool()
        before = None if past is None else past.position
        position = token_positions(time, before, segment_start, mask, x.device)
        dtype = torch.promote_types(x.dtype, torch.float32)
        positions = Positions.at(position, self.config, dtype, segment_start, mask)
        return positions, (position[:, -1] + 1).expand(batch)
