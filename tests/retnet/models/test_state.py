"""The state as a value, and the fixed one: steps that are compiled once, touch no other device and
never wait for one, and choose what steps with values choose."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig

from retnet import RetentionCache
from tests.retnet.models.small_model import build_model


@pytest.fixture
def model(architecture):
    return build_model(architecture, decoder_layers=1)


def tokens(time: int, seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randint(3, 400, (batch, time), generator=torch.Generator().manual_seed(seed))


def tensors(past: RetentionCache) -> list[torch.Tensor]:
    return [*past.states, past.position]


def assert_equal(fixed: RetentionCache, value: RetentionCache) -> None:
    for ours, theirs in zip(tensors(fixed), tensors(value), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert fixed.get_seq_length() == value.get_seq_length()


@torch.no_grad()
def test_steps_from_a_fixed_state_are_compiled_once_and_stay_where_they_are(model):
    value = model(tokens(9)).past_key_values
    fixed = value.fixed()
    places = [x.data_ptr() for x in (*tensors(fixed), fixed.length)]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
    mask = torch.tensor([[1], [0]])
    for step in range(5):
        given = dict(input_ids=tokens(1, step), forward_mode="recurrent", attention_mask=mask)
        found = compiled(**given, past_key_values=fixed)
        expected = model(**given, past_key_values=value)
        value = expected.past_key_values
        assert found.past_key_values is fixed
        torch.testing.assert_close(found.logits, expected.logits)
        assert_equal(fixed, value)
    assert counter.frame_count == 1
    assert places == [x.data_ptr() for x in (*tensors(fixed), fixed.length)]


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
@torch.no_grad()
def test_every_form_goes_on_from_a_fixed_state_and_overwrites_it(model, form):
    value = model(tokens(9)).past_key_values
    kept, fixed = [x.clone() for x in value.states], value.fixed()
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    given = dict(input_ids=tokens(4), attention_mask=mask, forward_mode=form)
    found, expected = (model(**given, past_key_values=past) for past in (fixed, value))
    assert torch.equal(found.logits, expected.logits)
    assert_equal(fixed, expected.past_key_values)
    assert all(torch.equal(x, y) for x, y in zip(value.states, kept, strict=True))
    before = fixed.states[0].clone()
    model(**given, past_key_values=fixed, use_cache=False)
    assert torch.equal(fixed.states[0], before)
    fixed.reset()
    assert_equal(fixed, RetentionCache.empty(model.config, 2))


class Devices(TorchDispatchMode):
    """Which devices each operation touches."""

    def __init__(self) -> None:
        super().__init__()
        self.touched = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        tensors = (x for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor))
        self.touched |= {(x.device.type, str(operation)) for x in tensors}
        return found


@torch.no_grad()
def test_a_step_never_waits_for_its_device_and_touches_no_other(model):
    """On the meta device nothing can be read: .item(), a branch on a value, nonzero all raise."""
    model = model.to("meta")
    past = RetentionCache.empty(model.config, 2, torch.device("meta")).fixed()
    token = torch.zeros(2, 1, dtype=torch.long, device="meta")
    given = dict(attention_mask=token, past_key_values=past, forward_mode="recurrent")
    with Devices() as devices:
        assert model(token, **given).past_key_values is past
    assert devices.touched and {device for device, _ in devices.touched} == {"meta"}


@pytest.mark.parametrize(
    "mode, graphs",
    [
        (dict(do_sample=False), 1),
        (dict(do_sample=True, top_k=0), 1),
        (dict(do_sample=False, num_beams=3), 0),
    ],
    ids=["greedy", "sampling", "beams"],
)
def test_generation_from_a_fixed_state_is_the_same_and_compiled_once(model, mode, graphs):
    """transformers compiles all but beam search; elsewhere than on GPUs where its tests ask."""
    ids, mask = tokens(9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    asked = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    asked._compile_all_devices = True
    past = RetentionCache.empty(model.config, 2 * mode.get("num_beams", 1)).fixed()
    settings = dict(max_new_tokens=5, eos_token_id=None, pad_token_id=0) | mode
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(1)
    found = model.generate(
        ids, attention_mask=mask, past_key_values=past, compile_config=asked, **settings
    )
    assert counters["stats"]["unique_graphs"] == graphs and past.get_seq_length() == 9 + 4
    torch.manual_seed(1)
    assert torch.equal(found, model.generate(ids, attention_mask=mask, **settings))


def test_what_a_fixed_state_cannot_be_is_refused(model):
    past = RetentionCache.empty(model.config, 2).fixed()
    with pytest.raises(ValueError, match="of 2 sequences was to become one of 6; .* then call fix"):
        past.batch_repeat_interleave(3)
    for form in ("chunkwise", "recurrent"):
        with pytest.raises(ValueError, match=r"gradient.* torch\.no_grad\(\)"):
            model(tokens(1), past_key_values=past, forward_mode=form)
    assert_equal(past, RetentionCache.empty(model.config, 2))
    with torch.no_grad(), pytest.raises(ValueError, match=r"or \[2, 1\] with the past in front"):
        model(tokens(1), past_key_values=past, attention_mask=torch.ones(2, 3))
