"""An exported folder loads with the package, and by itself where torch and transformers are."""

import ast
import inspect
import json
import os
import subprocess
import symtable
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    pipeline,
)

from data.tokenizer import SentencePieceTokenizer as Tokenizer
from data.tokenizer import train_tokenizer
from retnet.kernels import KernelsConfig, select_kernels
from retnet.models.build import Architecture, ModelConfig, build_model
from retnet.models.export import carried_code, export_model
from retnet.models.heads import DecoderForCausalLM

VARIANTS = {
    "gated": {},
    "plain": {"gated": False},
    "nucleus_x": {"architecture": Architecture.nucleus_x},
    "tied": {"tie_word_embeddings": True},
}
VOCABULARY = 300
PROMPT = "def f(x):\n"


def build(name: str) -> DecoderForCausalLM:
    sizes = dict(num_layers=2, hidden_size=32, num_heads=2, value_dim=48, intermediate_size=40)
    config = ModelConfig(vocab_size=VOCABULARY, **sizes | VARIANTS[name])
    # Separate projections, as in what is loaded: the same arithmetic to the last bit.
    kernels = select_kernels(KernelsConfig(fused_projections=False))
    return build_model(config, kernels, seed=0).eval()


def outputs(model) -> dict[str, torch.Tensor]:
    """Logits in all three forms and a greedy continuation."""
    ids = torch.arange(20).view(2, 10)
    forms = ("parallel", "chunkwise", "recurrent")
    with torch.no_grad():
        found = {
            form: model(ids, forward_mode=form, recurrent_chunk_size=4).logits for form in forms
        }
    found["text"] = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    return found


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_model_loads_through_the_auto_classes_and_computes_the_same(name, tmp_path):
    model = build(name)
    export_model(model.config, model.state_dict(), tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["decoder_embed_dim"] == 32
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is type(model)
    assert_equal(outputs(loaded), outputs(model))
    bare = AutoModel.from_pretrained(tmp_path)
    for key, weight in model.model.state_dict().items():
        assert torch.equal(bare.state_dict()[key], weight), key


@pytest.mark.filterwarnings("error::UserWarning")
def test_with_the_package_the_carried_code_is_neither_run_nor_asked_for(tmp_path):
    model = build("gated")
    export_model(model.config, model.state_dict(), tmp_path)
    for file in tmp_path.glob("*.py"):
        file.write_text("raise AssertionError('the carried code was run')\n")
    ours = (type(model).model_class, type(model))
    for auto, expected in zip((AutoModel, AutoModelForCausalLM), ours, strict=True):
        for trust in (None, False, True):
            loaded = auto.from_pretrained(tmp_path, trust_remote_code=trust)
            assert type(loaded) is expected
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(classifier.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_what_the_package_saves_does_not_promise_code_that_is_not_there(tmp_path):
    model = build("gated")
    export_model(model.config, model.state_dict(), tmp_path / "export")
    AutoModelForCausalLM.from_pretrained(tmp_path / "export").save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert_equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), outputs(model))


ALONE = """
import sys
sys.modules["retnet"] = None  # wherever it is installed: here `import retnet` is an error
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import pipeline

{outputs}

torch.set_num_threads({threads})
for folder in map(Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    save_file(outputs(model), folder / "alone.safetensors")
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True)
    save_file(outputs(again), folder / "again.safetensors")
    for auto in (AutoModel, AutoModelForSequenceClassification):
        auto.from_pretrained(folder, trust_remote_code=True)
    write = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    text = write({prompt!r}, max_new_tokens=5, do_sample=False)[0]["generated_text"]
    (folder / "alone.txt").write_text(text)
"""


def test_a_folder_computes_and_saves_the_same_without_the_package(tmp_path):
    lines = [f"x{i} = {i * i} + {i % 7}\nreturn x{i}\n" for i in range(300)]
    train_tokenizer(lines, tmp_path / "tokenizer.model", VOCABULARY)
    models = {name: build(name) for name in VARIANTS}
    for name, model in models.items():
        export_model(model.config, model.state_dict(), tmp_path / name)
        Tokenizer(tmp_path / "tokenizer.model").export(tmp_path / name)
    script = ALONE.format(
        outputs=inspect.getsource(outputs), threads=torch.get_num_threads(), prompt=PROMPT
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", script, *(tmp_path / name for name in VARIANTS)],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for name, model in models.items():
        folder = tmp_path / name
        expected = outputs(model)
        assert_equal(load_file(folder / "alone.safetensors"), expected)
        assert_equal(load_file(folder / "again.safetensors"), expected)
        write = pipeline("text-generation", model=str(folder))
        text = write(PROMPT, max_new_tokens=5, do_sample=False)[0]["generated_text"]
        assert (folder / "alone.txt").read_text() == text


@pytest.mark.parametrize("module", ["retnet.models.retnet", "retnet.models.nucleus_x"])
def test_carried_code_needs_torch_transformers_and_nothing_that_is_not_carried(module):
    files = carried_code(module)
    # huggingface_hub and safetensors come with transformers.
    libraries = {"torch", "transformers", "huggingface_hub", "safetensors"}
    defined = {
        file: {
            symbol.get_name()
            for symbol in symtable.symtable(source, file, "exec").get_symbols()
            if symbol.is_assigned() or symbol.is_imported()
        }
        for file, source in files.items()
    }
    for file, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                needed = {name.name for name in node.names}
                assert needed <= defined[f"{node.module}.py"], f"{file}:{node.lineno}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [name.name for name in node.names]
                for name in [node.module] if isinstance(node, ast.ImportFrom) else names:
                    library = name.split(".")[0]
                    known = library in libraries | sys.stdlib_module_names
                    assert known, f"{file}:{node.lineno} needs {library}"


def test_each_carried_file_opens_with_where_it_comes_from():
    for file, source in carried_code("retnet.models.retnet").items():
        head, body = source.split("\n", 1)
        module = head.removeprefix("# ").split(" of retnet ")[0]
        assert file == f"{module.removeprefix('retnet.').replace('.', '_')}.py"
        original = inspect.getsource(sys.modules[module])
        assert ast.get_docstring(ast.parse(source)) == ast.get_docstring(ast.parse(original))
        assert len(body.splitlines()) == len(original.splitlines())


def test_a_small_shard_limit_gives_many_files_that_load_back(tmp_path):
    model = build("gated")
    export_model(model.config, model.state_dict(), tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert shards == {file.name for file in tmp_path.glob("*.safetensors")}
    stored = {}
    for shard in shards:
        stored |= load_file(tmp_path / shard)
    assert_equal(stored, model.state_dict())
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_a_tied_head_is_stored_once(tmp_path):
    model = build("tied")
    # Weights that were gathered from several ranks come as two equal tensors.
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    export_model(model.config, weights, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys() - {"lm_head.weight"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_files_keep_the_weights_dtype(tmp_path):
    model = build("gated")
    weights = {key: weight.bfloat16() for key, weight in model.state_dict().items()}
    export_model(model.config, weights, tmp_path)
    assert_equal(load_file(tmp_path / "model.safetensors"), weights)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_generation_knows_the_first_and_the_last_token(tmp_path):
    config = ModelConfig(vocab_size=60, hidden_size=32, num_heads=2, value_dim=48)
    model = build_model(config, select_kernels(), seed=0, bos_token_id=7, eos_token_id=9)
    export_model(model.config, model.state_dict(), tmp_path)
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id) == (7, 9)


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path):
    model = build("gated")
    weights: dict[str, torch.Tensor] = model.state_dict()
    del weights["model.layer_norm.weight"]
    with pytest.raises(RuntimeError, match="model.layer_norm.weight"):
        export_model(model.config, weights, Path(tmp_path))
    assert not list(tmp_path.iterdir())
