"""The models that whole steps and decoding are measured on: ours of 23 million parameters, and
transformers' Llama of as many."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from retnet.kernels import select_kernels
from retnet.models.build import ModelConfig, build_model, count_parameters, flops_per_token
from retnet.models.heads import DecoderForCausalLM
from retnet.models.loss import causal_lm_loss
from tests.benchmarks.measure import Settings, relative_error


def our_config(settings: Settings) -> ModelConfig:
    """The sizes of configs/model/retnet_base.yaml with 4,096 pieces: 23,269,888 parameters."""
    return ModelConfig(
        vocab_size=settings.size(4096, 64),
        num_layers=settings.size(6, 2),
        hidden_size=settings.size(512, 32),
        num_heads=2,
        value_dim=settings.size(864, 48),
        intermediate_size=settings.size(864, 48),
        chunk_size=settings.size(256, 32),
    )


def our_model(settings: Settings) -> DecoderForCausalLM:
    """In float32, always the same weights."""
    return build_model(our_config(settings), select_kernels(), seed=0)


def llama(settings: Settings) -> LlamaForCausalLM:
    """As many layers, as wide, and a feed-forward that makes up for the other weights, in 32s."""
    ours = our_config(settings)
    width = ours.hidden_size
    layer = 2 * width**2 + 3 * width * (ours.value_dim + ours.intermediate_size)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ours.vocab_size,
            hidden_size=width,
            num_hidden_layers=ours.num_layers,
            num_attention_heads=settings.size(8, 2),
            intermediate_size=round((layer - 4 * width**2) / (3 * width) / 32) * 32,
            max_position_embeddings=settings.size(16384, 1024),
            attn_implementation="sdpa",
        )
    )


LONGEST = 2048
"Tokens for which the parallel form in float64 is still quick."


class Logits(nn.Module):
    """A transformers model as a function: ids [B, T] -> logits [B, T, vocabulary]."""

    def __init__(self, inner: nn.Module, **asked: str) -> None:
        super().__init__()
        self.inner = inner
        self.asked = asked

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids, use_cache=False, **self.asked).logits


class WithLoss(nn.Module):
    """Any of the models under the contract of `train_step`, all with one loss, ours."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(
        self, input_ids: Tensor, shift_labels: Tensor, num_items_in_batch: Tensor
    ) -> SimpleNamespace:
        logits = self.logits(input_ids)
        return SimpleNamespace(loss=causal_lm_loss(logits, shift_labels, num_items_in_batch))


def our_flops(model: DecoderForCausalLM, time: int) -> float:
    """FLOPs of a training step on one sequence, by the convention of `flops_per_token`."""
    return time * flops_per_token(model)


def llama_flops(model: LlamaForCausalLM, time: int) -> float:
    """The same for softmax attention: 6 x its linear layers' weights a token, and the causal half
    of the scores."""
    config = model.config
    linear = count_parameters(model) - count_parameters(model.model.embed_tokens)
    attention = 6.0 * config.num_hidden_layers * time * config.hidden_size
    return time * (6.0 * linear + attention)


def logits_error(found: nn.Module, fresh: Callable[[], nn.Module], ids: Tensor) -> float:
    """How far the logits of `found` for `ids` are from those of `fresh()` in float64 with its
    weights. Long rows are cut: there what is compiled for whole rows runs uncompiled."""
    truth = fresh().double()
    truth.load_state_dict(found.state_dict())
    cut = ids.shape[1] > LONGEST
    with torch.compiler.set_stance("force_eager" if cut else "default"):
        ids = ids[:, :512] if cut else ids
        logits = found(ids).detach()  # with gradients, as in a step: the same graphs
    with torch.no_grad():  # not inference_mode: some peers keep tables from here for their steps
        return relative_error([logits], [truth(ids)])


def compile_layers(module: nn.Module, settings: Settings) -> nn.Module:
    """The same, each of its layers compiled in place when it first runs; in a quick run without
    making code of it."""
    backend = "aot_eager" if settings.quick else "inductor"
    for name, layers in module.named_modules():
        if isinstance(layers, nn.ModuleList) and name.endswith("layers"):
            for layer in layers:
                layer.compile(dynamic=False, backend=backend)
    return module
