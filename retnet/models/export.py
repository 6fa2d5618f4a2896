"""From weights to a Hugging Face folder that stands alone: it carries the code of its model.

After `import retnet` the Auto classes use the package and leave the carried code alone; a machine
that has only torch and transformers runs it when told `trust_remote_code=True`. Not here: the
tokenizer's files.
"""

import ast
import json
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from retnet.models.configuration import NucleusXConfig, RetentionConfig
from retnet.models.heads import DecoderForCausalLM
from retnet.models.nucleus_x import NucleusXForCausalLM
from retnet.models.retnet import RetNetForCausalLM


def export_model(
    config: RetentionConfig,
    weights: dict[str, Tensor],
    folder: Path,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes config.json, generation_config.json, the weights and the code for `from_pretrained`.

    weights: as the model's `state_dict()` names them, all of one dtype, which the files keep; a
    tied head is stored once, as the embedding. max_shard_size: bytes, or text like "5GB"; what is
    more goes into several model-*.safetensors and an index.
    """
    model_class = NucleusXForCausalLM if isinstance(config, NucleusXConfig) else RetNetForCausalLM
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for name, source in carried_code(model_class.__module__).items():
        (folder / name).write_text(source)
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | {"auto_map": auto_map(model_class)}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def auto_map(model_class: type[DecoderForCausalLM]) -> dict[str, str]:
    """Where transformers finds the folder's classes: Auto class -> "file.class"."""
    name = model_class.__name__.removesuffix("ForCausalLM")
    modeling = flat_name(model_class.__module__)
    return {
        "AutoConfig": f"{flat_name(model_class.config_class.__module__)}.{name}Config",
        "AutoModel": f"{modeling}.{name}Model",
        "AutoModelForCausalLM": f"{modeling}.{name}ForCausalLM",
        "AutoModelForSequenceClassification": f"{modeling}.{name}ForSequenceClassification",
    }


def carried_code(module: str) -> dict[str, str]:
    """`module` and every module of ours that it imports, file name -> source.

    The files lie side by side and import each other by `from .name import ...`, the one form that
    transformers follows when it collects a folder's code. So modules of ours import names from each
    other, never modules.
    """
    try:
        release = version("retnet")
    except PackageNotFoundError:  # a checkout that is on the path without being installed
        release = "from a checkout"
    files: dict[str, str] = {}
    needed = [module]
    while needed:
        module = needed.pop()
        source = Path(find_spec(module).origin).read_text()
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "retnet":
                absolute, relative = f"from {node.module} ", f"from .{flat_name(node.module)} "
                lines[node.lineno - 1] = lines[node.lineno - 1].replace(absolute, relative, 1)
                if f"{flat_name(node.module)}.py" not in files:
                    needed.append(node.module)
        head = f"# {module} of retnet {release} (MIT license), with its imports made relative.\n"
        files[f"{flat_name(module)}.py"] = head + "".join(lines)
    return files


def flat_name(module: str) -> str:
    """What a module of ours is called where all lie side by side: retnet.models.rotary becomes
    models_rotary."""
    return module.removeprefix("retnet.").replace(".", "_")
