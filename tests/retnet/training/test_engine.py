"""DeepSpeed's JSON is derived, from sizes that fit."""

from typing import Any

import pytest
import torch

from retnet.training.engine import EngineConfig, Precision, deepspeed_config, resolve_dtype
from retnet.training.optimizer import OptimizerConfig, Update

SIZES = {"global_batch_size": 24, "micro_batch_size": 3, "world_size": 2}
CPU = torch.device("cpu")


def _derive(engine: EngineConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return deepspeed_config(engine, OptimizerConfig(gradient_clipping=0.5), dtype=dtype, **SIZES)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_float32_and_sizes_multiply_in_every_stage(stage: int, dtype: torch.dtype) -> None:
    config = _derive(EngineConfig(stage=stage), dtype)
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"]["stage"] == stage
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config["communication_data_type"] == "fp32"
    # In stage 0 the wrapper of our own casts and clips.
    assert ("bf16" in config) == (dtype == torch.bfloat16 and stage > 0)
    assert config["gradient_clipping"] == (0.5 if stage else 0.0)


def test_float16_scales_its_loss_dynamically() -> None:
    assert _derive(EngineConfig(stage=2), torch.float16)["fp16"] == {
        "enabled": True,
        "loss_scale": 0,
    }


def test_offload_keeps_our_optimizer() -> None:
    config = _derive(EngineConfig(stage=2, offload_optimizer=True))
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("engine", "dtype", "why"),
    [
        (EngineConfig(stage=3), torch.bfloat16, "engine.stage=3"),
        (EngineConfig(stage=2, offload_optimizer=True), torch.bfloat16, "engine.offload_optimizer"),
        (EngineConfig(stage=1), torch.float16, "engine.dtype=float16"),
    ],
)
def test_what_the_fused_update_cannot_do_takes_the_stock_one_and_says_why(
    engine: EngineConfig, dtype: torch.dtype, why: str
) -> None:
    update, words = engine.choose_update(OptimizerConfig(), dtype)
    assert update is Update.stock and why in words
    assert engine.choose_update(OptimizerConfig(update=Update.stock), dtype)[1] == "stock update"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_update_asked_for_is_taken_where_it_can_be(stage: int) -> None:
    for update in Update:
        optimizer = OptimizerConfig(update=update)
        taken, words = EngineConfig(stage=stage).choose_update(optimizer, torch.bfloat16)
        assert taken is update and words == f"{update.value} update"


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers() -> None:
    sizes = SIZES | {"global_batch_size": 25}
    with pytest.raises(ValueError, match=r"global_batch_size is 25.*size 3 times 2 ranks \(6\)"):
        deepspeed_config(EngineConfig(), OptimizerConfig(), dtype=torch.float32, **sizes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stage": 4}, "engine.stage is 4"),
        ({"stage": 0, "offload_optimizer": True}, "engine.offload_optimizer is true"),
        ({"stage": 0, "dtype": Precision.float16}, "engine.dtype is float16 and engine.stage is 0"),
        ({"reduce_bucket_size": 0}, "engine.reduce_bucket_size is 0"),
    ],
)
def test_an_impossible_engine_is_refused_by_its_key(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineConfig(**values)


def test_a_precision_asked_for_by_name_is_taken() -> None:
    assert resolve_dtype(Precision.bfloat16, CPU) == torch.bfloat16
    assert resolve_dtype(Precision.float16, CPU) == torch.float16
    assert resolve_dtype(Precision.float32, CPU) == torch.float32


def test_auto_is_bfloat16_exactly_where_the_cpu_multiplies_it() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu.get_capabilities().get("amx_bf16")
    if torch.cpu.get_capabilities()["architecture"] != "x86_64":
        native = torch.cpu.get_capabilities().get("bf16", False)
    expected = torch.bfloat16 if native else torch.float32
    assert resolve_dtype(Precision.auto, CPU) == expected
