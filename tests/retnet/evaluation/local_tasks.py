"""Tasks of lm-eval with their documents in a folder, one for each kind of request."""

import json
from pathlib import Path

WORDS = ["red", "green", "blue", "yellow", "white", "black", "gray"]
TASKS = {
    "copying": """
        output_type: multiple_choice
        doc_to_text: "{{text}}"
        doc_to_choice: choices
        target_delimiter: " "
        doc_to_target: answer
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "going_on": """
        output_type: generate_until
        doc_to_text: "{{text}}"
        doc_to_target: "{{choices[answer]}}"
        generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
        metric_list: [{metric: exact_match}]
    """,
    "after_examples": """
        output_type: loglikelihood
        doc_to_text: "{{text}}"
        doc_to_target: " {{choices[answer]}}"
        num_fewshot: 2
        fewshot_split: test
        metric_list: [{metric: perplexity}]
    """,
    "reading": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
    """,
}


def write_tasks(folder: Path) -> Path:
    """The folder with a YAML file for each of TASKS and the documents of all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        {
            "text": f"{first} and {second} and {first} and",
            "choices": [first, second, "none of the two"],
            "answer": 1,
        }
        for first, second in zip(WORDS, WORDS[1:], strict=False)
    ]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    files = {"data_files": {"test": str(folder / "documents.jsonl")}}
    files["cache_dir"] = str(folder / "cache")
    data = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    for name, task in TASKS.items():
        lines = [f"task: {name}", *(line.strip() for line in task.strip().splitlines())]
        lines += [f"{key}: {json.dumps(value)}" for key, value in data.items()]
        (folder / f"{name}.yaml").write_text("\n".join(lines))
    return folder
