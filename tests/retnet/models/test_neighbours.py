"""Other people's tools take the models as they take any other: transformers' Trainer, PEFT and
lm-eval. Nothing here needs a network."""

import json
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from tests.retnet.models.small_model import build_model

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "g_proj", "out_proj", "fc1", "gate", "fc2"]
TASKS = {
    "choices": """
        task: choices
        output_type: multiple_choice
        doc_to_text: "{{text}}"
        doc_to_choice: choices
        target_delimiter: ""
        doc_to_target: answer
        metric_list: [{metric: acc}]
    """,
    "continuations": """
        task: continuations
        output_type: generate_until
        doc_to_text: "{{text}}"
        doc_to_target: "{{choices[answer]}}"
        generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
        metric_list: [{metric: exact_match}]
    """,
}


def rows(ragged: bool = False) -> list[dict[str, torch.Tensor]]:
    """Eight texts that count upwards; with `ragged`, only a row's last few tokens are targets."""
    starts = torch.randint(3, 300, (8,), generator=torch.Generator().manual_seed(0))
    texts = [torch.arange(start, start + 12) for start in starts.tolist()]
    labels = [text.clone() for text in texts]
    for row, label in enumerate(labels):
        label[: row + 2 if ragged else 0] = -100
    return [dict(input_ids=text, labels=label) for text, label in zip(texts, labels, strict=True)]


def train(model, folder: Path, dataset=None, resume: str | None = None, **changes) -> list[float]:
    """The loss of every step."""
    settings = dict(
        max_steps=6,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    arguments = TrainingArguments(output_dir=str(folder), **settings | changes)
    trainer = Trainer(model, arguments, train_dataset=dataset or rows())
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module, **tolerance: float) -> None:
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_trainer_trains_saves_and_resumes(architecture, tied, tmp_path):
    changes = dict(lm_head_initializer_range=None, tie_word_embeddings=tied)
    whole = build_model(architecture, **changes)
    losses = train(whole, tmp_path, save_strategy="steps", save_steps=3)
    assert losses[-1] < losses[0] - 1
    resumed = build_model(architecture, **changes)
    after = train(resumed, tmp_path, resume=str(tmp_path / "checkpoint-3"))
    assert after[3:] == losses[3:]
    assert_same_weights(resumed, whole, rtol=0, atol=0)


def test_the_trainer_evaluates(architecture, tmp_path):
    model = build_model(architecture)
    arguments = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True)
    predictions = Trainer(model, arguments).predict(rows())
    batch = {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}
    expected = model(**batch)
    assert predictions.metrics["test_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    torch.testing.assert_close(torch.tensor(predictions.predictions), expected.logits)


def test_accumulated_micro_batches_are_one_batch(architecture, tmp_path):
    """Rows have different numbers of targets, so a mean of micro-batch means would be wrong."""
    one, several = build_model(architecture), build_model(architecture)
    settings = dict(dataset=rows(ragged=True), max_steps=1, optim="sgd", learning_rate=0.1)
    loss = train(one, tmp_path, **settings)
    split = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert train(several, tmp_path, **settings, **split) == pytest.approx(loss, rel=1e-5)
    assert_same_weights(several, one, rtol=1e-5, atol=1e-6)
    assert not torch.equal(one.lm_head.weight, build_model(architecture).lm_head.weight)


def test_the_trainer_checkpoints_activations(architecture, tmp_path):
    plain, frugal = build_model(architecture), build_model(architecture)
    losses = train(plain, tmp_path, max_steps=2)
    assert train(frugal, tmp_path, max_steps=2, activation_checkpointing=True) == losses
    assert frugal.is_activation_checkpointing
    assert_same_weights(frugal, plain, rtol=1e-5, atol=1e-6)


def adapted(base: torch.nn.Module, **changes) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=PROJECTIONS, task_type="CAUSAL_LM", **changes)
    return get_peft_model(base, config)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_lora_trains_its_adapters_alone(architecture, checkpointing, tmp_path):
    model = adapted(build_model(architecture))
    before = {name: x.clone() for name, x in model.named_parameters()}
    losses = train(model, tmp_path, activation_checkpointing=checkpointing)
    assert losses[-1] < losses[0] - 0.5
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    adapters = sum("lora_A" in name for name in before)
    assert adapters == 2 * (8 if architecture == "nucleus_x" else 7)  # a plain one has no gate


@pytest.mark.parametrize(
    "tied, changes",
    [
        (False, dict()),
        (False, dict(modules_to_save=["lm_head"])),
        (True, dict(modules_to_save=["lm_head"])),
        (True, dict(modules_to_save=["lm_head"], ensure_weight_tying=True)),
    ],
    ids=["projections", "and head", "and a head that was tied", "and a tied head"],
)
def test_a_lora_adapter_survives_saving_and_merging(architecture, tied, changes, tmp_path):
    def base():
        return build_model(architecture, tie_word_embeddings=tied)

    ids = rows()[0]["input_ids"][None]
    model = adapted(base(), **changes)
    train(model, tmp_path, max_steps=2)
    expected = model.eval()(ids).logits
    assert not torch.allclose(expected, base()(ids).logits, atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    torch.testing.assert_close(loaded(ids).logits, expected)
    settings = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    text = loaded.generate(input_ids=ids, **settings)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.generate(ids, **settings), text)


def evaluate(exported: Path, task: str, batch_size: int) -> list[dict]:
    """What lm-eval says of each document of a task defined by files."""
    documents = [
        dict(text="    def decode(self, s", choices=[", _w", " = 1", "\n"], answer=0),
        dict(text="return", choices=[" obj", " a very much longer one, end"], answer=1),
        dict(text="# a longer text: the others are padded", choices=[" x", " and so on"], answer=0),
    ]
    folder = exported / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    data = dict(
        dataset_path="json",
        dataset_kwargs=dict(
            data_files=dict(test=str(folder / "documents.jsonl")),
            cache_dir=str(exported / "cache"),
        ),
        test_split="test",
    )
    (folder / f"{task}.yaml").write_text(
        "\n".join(line.strip() for line in TASKS[task].splitlines())
        + "".join(f"{key}: {json.dumps(value)}\n" for key, value in data.items())
    )
    results = simple_evaluate(
        model="hf",
        model_args=dict(pretrained=str(exported), dtype="float32"),
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=0,
    )
    samples = results["samples"][task]
    return sorted(samples, key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lm_eval_reports_the_models_own_likelihoods(exported, batch_size):
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    for sample in evaluate(exported, "choices", batch_size):
        text = sample["doc"]["text"]
        for choice, (answer,) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            context = tokenizer(text)["input_ids"]  # lm-eval reads the context by itself
            choice_ids = tokenizer(text + choice)["input_ids"][len(context) :]
            ids = torch.tensor([context + choice_ids])
            log_probs = model(ids).logits[0, :-1].log_softmax(-1)
            scores = log_probs.gather(-1, ids[0, 1:, None])
            expected = scores[-len(choice_ids) :].sum().item()
            assert answer[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lm_eval_generates_what_the_model_generates(exported, batch_size):
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    for sample in evaluate(exported, "continuations", batch_size):
        ids = torch.tensor([tokenizer(sample["doc"]["text"])["input_ids"]])
        new = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        expected = tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]
        assert sample["resps"] == [[expected]]
